"""``shopreel replay``: held-out requests through the whole pipeline → the tables that ``evaluate`` reads."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from data.atomic import refuse_existing, staged_directory, write_json
from data.dataset import Dataset
from data.errors import ConfigError, ContractError
from data.fingerprint import fingerprint
from data.held_out import truth_schema as whole_truth_schema
from models.bundle import Bundle
from serving.exact import NO_HITS
from serving.golden import check_golden
from serving.held_out import HeldOutBatch, open_log, rank_all, refuse_known_split, user_requests
from serving.pipeline import Pipeline, Stage
from serving.popularity_baseline import PopularityBaseline
from serving.predictions import predict_impressions, predictions_schema
from serving.replay_config import Baseline, ReplayConfig, Requests, Rules
from serving.replay_tables import TableWriter, run_rows, run_schema, sliced, truth_schema
from serving.slates import slate_requests
from serving.trained_baseline import TrainedBaseline

CONFIG = ReplayConfig
STAGES = (Stage.exact, Stage.index, Stage.feed)
#: Counting models read all that a user did; the user tower takes the newest steps of it.
WHOLE_HISTORY_STEPS = 1_000_000
#: With a ranker in the bundle.
RANKED_STAGES = (Stage.exact, Stage.index, Stage.ranker, Stage.feed)


@dataclass(slots=True)
class Counts:
    """What went through: requests with a truth, those without one, and answers that were degraded."""

    requests: int = 0
    without_truth: int = 0
    truths: int = 0
    degraded: dict[str, int] = field(default_factory=dict)


def run(config: ReplayConfig) -> None:
    """Replay, write the tables and ``protocol.json``, and print what was replayed."""
    refuse_existing(config.out, overwrite=config.overwrite)
    bundle = Bundle.open(config.bundle, device=config.device.value)
    dataset = open_log(config.dataset)
    refuse_known_split(bundle, config.bundle, config.split.value)
    gain = gain_of(config.gain, bundle.manifest.dataset["tasks"])
    pipeline = Pipeline(bundle)
    check_golden(pipeline)
    with staged_directory(config.out, overwrite=config.overwrite) as scratch:
        trained = [TrainedBaseline.open(path, bundle, scratch) for path in config.baselines]
        baseline = _baseline(config, bundle, dataset, gain, scratch)
        batches = _batches(config, bundle, dataset, gain)
        counts = _replay(config, pipeline, batches, gain, scratch, baseline, trained)
        _predictions(config, bundle, dataset, scratch)
        protocol = _protocol(config, bundle, dataset, gain, counts, baseline)
        write_json(scratch / "protocol.json", protocol)
    _tell(config, protocol)


def stages_of(bundle: Bundle) -> tuple[Stage, ...]:
    """The stages that a bundle's answers pass through."""
    return STAGES if bundle.ranker is None else RANKED_STAGES


def gain_of(gain: str, tasks: Sequence[str]) -> str:
    """What makes a video right: as asked for, or for ``auto`` long_view, else click, else any label."""
    if not tasks:
        raise ContractError(
            "the bundle's training log had no label at all; replay needs one: import it with labels"
        )
    if gain == "auto":
        return next((label for label in ("long_view", "click") if label in tasks), "any")
    if gain != "any" and gain not in tasks:
        raise ConfigError(
            f"gain={gain}: the training log did not know it; choose one of {', '.join(tasks)}, any"
        )
    return gain


def _predictions(config: ReplayConfig, bundle: Bundle, dataset: Dataset, scratch: Path) -> None:
    """Write ``predictions.parquet`` where there is a ranker to predict."""
    if bundle.ranker is None:
        return
    with TableWriter(scratch / "predictions.parquet", predictions_schema(bundle)) as writer:
        for table in predict_impressions(
            bundle, dataset, config.split.value, memory_limit_gb=config.memory_limit_gb
        ):
            writer.write(table)


def _batches(config: ReplayConfig, bundle: Bundle, dataset: Dataset, gain: str) -> Iterator[HeldOutBatch]:
    split, rules = config.split.value, config.rules is Rules.on
    if config.requests is Requests.slate:
        return slate_requests(
            bundle, dataset, split, gain=gain, rules=rules, memory_limit_gb=config.memory_limit_gb
        )
    return user_requests(
        bundle, dataset, split, gain=gain, k=config.k, rules=rules, memory_limit_gb=config.memory_limit_gb,
        history_steps=WHOLE_HISTORY_STEPS if config.baselines else None,
    )  # fmt: skip


def _baseline(
    config: ReplayConfig, bundle: Bundle, dataset: Dataset, gain: str, scratch: Path
) -> PopularityBaseline | None:
    if config.baseline is Baseline.none or config.requests is Requests.slate:
        return None
    return PopularityBaseline.count(
        bundle, dataset, config.split.value, gain=gain, days=config.popularity_days, directory=scratch,
        memory_limit_gb=config.memory_limit_gb,
    )  # fmt: skip


def _replay(
    config: ReplayConfig, pipeline: Pipeline, batches: Iterator[HeldOutBatch], gain: str, scratch: Path,
    baseline: PopularityBaseline | None, trained: Sequence[TrainedBaseline],
) -> Counts:  # fmt: skip
    bundle, counts = pipeline.bundle, Counts()
    labels = bundle.manifest.dataset["tasks"]
    truth_columns = truth_schema(whole_truth_schema(bundle.users.type, bundle.catalogue.type), labels)
    with ExitStack() as files:
        runs = {
            stage: files.enter_context(
                TableWriter(scratch / f"run_{stage.value}.parquet", run_schema(bundle))
            )
            for stage in stages_of(bundle)
        }
        truth = files.enter_context(TableWriter(scratch / "truth.parquet", truth_columns))
        if baseline is not None:
            files.enter_context(baseline)
        for model in trained:
            files.enter_context(model)
        for batch in batches:
            answers = rank_all(pipeline, batch.requests, size=config.users_per_batch, stages=True)
            for stage, table in runs.items():
                hits = [answer.stages.get(stage, NO_HITS) for answer in answers]
                table.write(run_rows(bundle, batch.request_ids, hits, stage.value))
            truth.write(sliced(bundle, batch.truth, batch.request_ids, batch.seen, labels))
            if baseline is not None:
                baseline.add(batch, config.k)
            for model in trained:
                model.add(batch, config.k)
            counts.requests += len(batch.requests)
            counts.without_truth += batch.without_truth
            for reason in (reason for answer in answers for reason in answer.degraded):
                counts.degraded[reason] = counts.degraded.get(reason, 0) + 1
        counts.truths = truth.rows
    if not counts.truths:
        raise ContractError(
            f"{config.dataset}: no request of the {config.split.value} split has an unseen video with {gain} "
            "true; choose another gain or split, or a dataset that covers the bundle's split dates"
        )
    if baseline is not None:
        baseline.keep_best()
    return counts


def _protocol(
    config: ReplayConfig, bundle: Bundle, dataset: Dataset, gain: str, counts: Counts,
    baseline: PopularityBaseline | None,
) -> dict[str, Any]:  # fmt: skip
    """What was measured and how, for the report: ``evaluation.protocol`` reads it beside the truth."""
    per_user = config.requests is Requests.user
    facts: dict[str, Any] = {
        "split": {"name": config.split.value, **bundle.manifest.split},
        "catalogue_size": bundle.manifest.catalogue["videos"],
        "candidates": "the whole catalogue" if per_user else "the videos of the logged slate",
        "seen_mask": "every video in the user's log before the split" if per_user else "none: logged slates",
        "tie_break": "score descending, then catalogue row ascending",
        "gain": gain,
        "requests": config.requests.value,
        "k": config.k,
        "rules": config.rules.value,
        "requests_with_truth": counts.requests,
        "requests_without_truth": counts.without_truth,
        "true_videos": counts.truths,
        "bundle": bundle.name,
        "index": {**bundle.manifest.index["parameters"], **bundle.manifest.measured["index"]},
        "stages": [stage.value for stage in stages_of(bundle)],
        **({} if bundle.ranker is None else {"value_formula": bundle.ranker.value.to_json()}),
        "degraded": counts.degraded,
        "dataset": dataset.info.name,
        "dataset_is_that_of_training": fingerprint(dataset) == bundle.manifest.dataset["fingerprint"],
    }
    if baseline is not None:
        facts["popularity"] = {
            "window_days": baseline.best() or "all",
            "recall@20_by_window_days": {
                str(days or "all"): recall for days, recall in baseline.recall().items()
            },
            "chosen_by": "recall@20 on this truth, in its favour",
        }
    return facts


def _tell(config: ReplayConfig, protocol: dict[str, Any]) -> None:
    lines = [
        f"{protocol['requests_with_truth']:,} requests of the {config.split.value} split with "
        f"{protocol['true_videos']:,} right videos ({protocol['gain']}), of {protocol['catalogue_size']:,}; "
        f"{protocol['requests_without_truth']:,} requests without any are left out",
    ]
    if "ranker" not in protocol["stages"]:
        lines.append(
            f"{protocol['bundle']} has no ranker: there is no run_ranker.parquet and no predictions.parquet"
        )
    if protocol["degraded"]:
        lines.append(f"degraded answers: {protocol['degraded']}; see the log above")
    if not protocol["dataset_is_that_of_training"]:
        lines.append("note: this is not the dataset that the model was trained on")
    out = shlex.quote(config.out)
    if config.baselines:
        lines.append(f"baselines: run_*.parquet in {out}; compare with shopreel evaluate run=… baseline=…")
    lines.append(f"next: shopreel evaluate run={out} out=REPORT")
    Console(highlight=False, soft_wrap=True, markup=False).print("\n".join(lines))
