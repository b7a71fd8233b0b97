"""Everything that run and truth tables say: metrics, comparisons, slices, the waterfall over stages."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow.dataset as ds

from evaluation.arrays import Floats
from evaluation.bootstrap import Estimate, estimates
from evaluation.comparison import Correction, Difference, compare_requests, verdict
from evaluation.hits import Hits, find_hits
from evaluation.inputs import RunSource
from evaluation.ranking import parse_metric, score_requests
from evaluation.slices import Sliceable, SliceValue, simpson
from evaluation.slicing import SliceColumn
from evaluation.truth import Truth
from evaluation.waterfall import kept_videos, rank_of_truth, step_estimates, video_waterfall, waterfall

Metrics = dict[str, Estimate]
#: So many worst slices are named per run, comparison or stage.
WORST = 3
CURVE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 200, 500, 1000)


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


def recall_curves(
    runs: dict[str, ScoredRun], truth: Truth, deepest: int, *, replicates: int, seed: int
) -> dict[str, list[tuple[int, Estimate]]]:
    """Recall of every run at about a dozen cutoffs from 1 to ``deepest``."""
    cutoffs = sorted({*(k for k in CURVE if k < deepest), deepest})
    names = [f"recall@{k}" for k in cutoffs]
    value_RX = np.concatenate([score_requests(run.hits, truth, names) for run in runs.values()], axis=1)
    found = iter(estimates(value_RX, truth.user_R, replicates=replicates, seed=seed))
    return {name: [(k, next(found)) for k in cutoffs] for name in runs}


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

    k = parse_metric(settings.verdict)[1]
    m = settings.names.index(settings.verdict)
    slices, worst = cut_both(
        settings,
        truth,
        columns,
        (settings.verdict, new[1].value_RM[:, m] - old[1].value_RM[:, m], np.ones(truth.requests)),
        (f"recall@{k}", found_at(new[1], truth, k) - found_at(old[1], truth, k), np.ones(len(truth.gain_T))),
    )
    by_column: dict[str, list[float]] = {}
    for value in slices:
        by_column.setdefault(value.column, []).append(value.estimate.value)
    whole = next((d.delta.value for d in differences if d.metric == settings.verdict), 0.0)
    line = verdict(new[0], old[0], settings.verdict, differences)
    return Comparison(new[0], old[0], line, differences, slices, worst, simpson(whole, by_column))


def slice_run(
    run: ScoredRun, truth: Truth, columns: list[SliceColumn], settings: Settings
) -> tuple[list[SliceValue], list[SliceValue]]:
    """One run in every slice, and the worst slices in turn.

    Columns of the request are measured in the verdict's metric over their requests, columns of the video
    in recall over their right videos.
    """
    k = parse_metric(settings.verdict)[1]
    m = settings.names.index(settings.verdict)
    return cut_both(
        settings,
        truth,
        columns,
        (settings.verdict, run.value_RM[:, m], np.ones(truth.requests)),
        (f"recall@{k}", found_at(run, truth, k), np.ones(len(truth.gain_T))),
    )


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

    found, final = step_estimates(whole, truth.user_R, replicates=settings.replicates, seed=settings.seed)
    k = parse_metric(settings.verdict)[1]
    videos = video_waterfall(stages, truth, k)
    per_step = {}
    for p, step in enumerate(whole.steps):
        reached_R, reached_T = whole.level_RP[:, p], videos.level_RP[:, p]
        per_step[step] = cut_both(
            settings,
            truth,
            columns,
            (settings.verdict, whole.step_RP[:, p], reached_R),
            (f"recall@{k}", videos.step_RP[:, p], reached_T),
            cuts=len(whole.steps),
        )
    kept = kept_videos(stages, k)
    slices = {step: values for step, (values, _) in per_step.items()}
    return StageStudy(
        settings.verdict, found, final, slices, {step: w for step, (_, w) in per_step.items()}, kept
    )


def found_at(run: ScoredRun, truth: Truth, k: int) -> Floats:
    """1 for each right video [T] that the run has in its top ``k``, else 0."""
    return (rank_of_truth(run.hits, truth) <= k).astype(np.float64)


Part = tuple[str, Floats, Floats]


def cut_both(
    settings: Settings, truth: Truth, columns: list[SliceColumn], requests: Part, videos: Part, cuts: int = 1
) -> tuple[list[SliceValue], list[SliceValue]]:
    """Slices and worst slices by columns of the request and, outside those, by columns of the video.

    ``requests`` and ``videos`` are (metric, top, bottom) per request and per right video; ``cuts`` how
    many calls of this belong to one report.
    """
    first_T = np.flatnonzero(np.r_[True, truth.request_T[1:] != truth.request_T[:-1]])
    of_request = [
        column for column in columns if (column.code_X == column.code_X[first_T][truth.request_T]).all()
    ]
    whole = [SliceColumn(c.name, c.labels, c.code_X[first_T]) for c in of_request]
    of_video = [column for column in columns if column not in of_request]
    families = cuts * (bool(of_request) + bool(of_video))
    parts = (
        Sliceable(*requests, truth.user_R, whole, families),
        Sliceable(*videos, truth.user_R[truth.request_T], of_video, families),
    )
    kept_R, values, worst = np.ones(truth.requests, np.bool_), [], []
    draw = {"replicates": settings.replicates, "seed": settings.seed}
    for part in parts:
        if not part.columns:
            continue
        kept_X = kept_R if part is parts[0] else kept_R[truth.request_T]
        values += part.cut(np.ones(len(kept_X), np.bool_), **draw)
        named, left_X = part.worst_in_turn(part.cut(kept_X, **draw), kept_X, WORST, **draw)
        worst += named
        if part is parts[0]:
            kept_R = left_X
    return values, worst
