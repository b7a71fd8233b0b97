"""Everything that run and truth tables say: metrics, comparisons, slices, the waterfall over stages."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow.dataset as ds

from evaluation.arrays import Bools, Floats
from evaluation.bootstrap import Estimate, estimates, user_sums
from evaluation.comparison import Correction, Difference, compare_requests, verdict
from evaluation.hits import Hits, find_hits
from evaluation.inputs import RunSource
from evaluation.ranking import parse_metric, score_requests
from evaluation.slices import SliceValue, simpson, slice_sums, slice_values, worst_in_turn
from evaluation.slicing import SliceColumn
from evaluation.truth import Truth
from evaluation.waterfall import Waterfall, kept_videos, step_estimates, waterfall

Metrics = dict[str, Estimate]
#: So many worst slices are named per run, comparison or stage.
WORST = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure: metric names, the metric of the verdict, correction, draws."""

    names: list[str]
    verdict: str
    correction: Correction
    replicates: int
    seed: int


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """One run joined with the truth: its hits and the values [R, M] of every metric."""

    source: RunSource
    hits: Hits
    value_RM: Floats


@dataclass(frozen=True, slots=True)
class Comparison:
    """``new`` against ``old``: the verdict line, every difference, and the difference per slice."""

    new: str
    old: str
    verdict: str
    differences: list[Difference]
    slices: list[SliceValue] = field(default_factory=list)
    worst: list[SliceValue] = field(default_factory=list)
    simpson: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StageStudy:
    """The waterfall with its steps' estimates, and each step per slice."""

    metric: str
    steps: dict[str, Estimate]
    final: Estimate
    slices: dict[str, list[SliceValue]]
    worst: dict[str, list[SliceValue]]
    kept: dict[str, tuple[int, int]]


def score_run(source: RunSource, truth: Truth, names: list[str]) -> ScoredRun:
    """Join one run with the truth and score every request."""
    hits = find_hits("run", source.table, truth, source.where)
    return ScoredRun(source, hits, score_requests(hits, truth, names))


def run_estimates(runs: dict[str, ScoredRun], truth: Truth, settings: Settings) -> dict[str, Metrics]:
    """Every metric of every run with its interval, all on the same resamples of users."""
    value_RX = np.concatenate([run.value_RM for run in runs.values()], axis=1)
    found = iter(estimates(value_RX, truth.user_R, replicates=settings.replicates, seed=settings.seed))
    return {name: {metric: next(found) for metric in settings.names} for name in runs}


def compare_runs(
    new: tuple[str, ScoredRun],
    old: tuple[str, ScoredRun],
    truth: Truth,
    columns: list[SliceColumn],
    settings: Settings,
) -> Comparison:
    """Compare two runs on the metrics at the verdict's cutoff, and slice the verdict's difference."""
    cutoff = parse_metric(settings.verdict)[1]
    at = [m for m, name in enumerate(settings.names) if parse_metric(name)[1] == cutoff]
    differences = compare_requests(
        [settings.names[m] for m in at],
        new[1].value_RM[:, at],
        old[1].value_RM[:, at],
        truth.user_R,
        correction=settings.correction,
        replicates=settings.replicates,
        seed=settings.seed,
    )

    def difference(kept_T: Bools) -> Floats:
        pair = [score_requests(run.hits, truth, [settings.verdict], kept_T) for run in (new[1], old[1])]
        return pair[0] - pair[1]

    slices, worst = _sliced(difference, truth, columns, settings)[0]
    by_column: dict[str, list[float]] = {}
    for value in slices:
        by_column.setdefault(value.column, []).append(value.estimate.value)
    whole = next((d.delta.value for d in differences if d.metric == settings.verdict), 0.0)
    line = verdict(new[0], old[0], settings.verdict, differences)
    return Comparison(new[0], old[0], line, differences, slices, worst, simpson(whole, by_column))


def slice_run(
    run: ScoredRun, truth: Truth, columns: list[SliceColumn], settings: Settings
) -> tuple[list[SliceValue], list[SliceValue]]:
    """The verdict's metric of one run in every slice, and the worst slices in turn."""

    def score(kept_T: Bools) -> Floats:
        return score_requests(run.hits, truth, [settings.verdict], kept_T)

    return _sliced(score, truth, columns, settings)[0]


def study_stages(
    runs: dict[str, ScoredRun], truth: Truth, columns: list[SliceColumn], settings: Settings
) -> StageStudy | None:
    """The waterfall over the stages among ``runs``; None where there is nothing to fall through."""
    stages = {run.source.stage: run.hits for run in runs.values() if run.source.stage}
    feed = next((run.source for run in runs.values() if run.source.stage == "feed"), None)
    if feed is not None and "source" in feed.table.schema.names:
        paid = ds.field("source") != "campaign"
        where = paid if feed.where is None else feed.where & paid
        stages["feed_without_campaigns"] = find_hits("run", feed.table, truth, where, renumber=True)
    whole = waterfall(stages, truth, settings.verdict)
    if whole is None:
        return None

    def steps(kept_T: Bools) -> Floats:
        fall: Waterfall | None = waterfall(stages, truth, settings.verdict, kept_T)
        assert fall is not None
        return fall.step_RP

    found, final = step_estimates(whole, truth.user_R, replicates=settings.replicates, seed=settings.seed)
    per_step = dict(zip(whole.steps, _sliced(steps, truth, columns, settings), strict=True))
    kept = kept_videos(stages, parse_metric(settings.verdict)[1])
    slices = {step: values for step, (values, _) in per_step.items()}
    return StageStudy(
        settings.verdict, found, final, slices, {step: w for step, (_, w) in per_step.items()}, kept
    )


def _sliced(
    score: Callable[[Bools], Floats], truth: Truth, columns: list[SliceColumn], settings: Settings
) -> list[tuple[list[SliceValue], list[SliceValue]]]:
    """Per column of ``score`` [R, P]: every slice, and the worst slices in turn."""

    def measured(kept_T: Bools) -> list[list[SliceValue]]:
        whole = user_sums(score(kept_T), truth.user_R, settings.seed)
        sums = slice_sums(score, truth, columns, kept_T, seed=settings.seed)
        return slice_values(
            sums, whole, truth.requests, columns, replicates=settings.replicates, seed=settings.seed
        )

    everything = np.ones(len(truth.gain_T), np.bool_)
    if not columns:
        return [([], []) for _ in range(score(everything).shape[1])]

    def without(p: int) -> Callable[[Bools], list[SliceValue]]:
        return lambda kept_T: measured(kept_T)[p]

    return [
        (values, worst_in_turn(values, without(p), columns, WORST))
        for p, values in enumerate(measured(everything))
    ]
