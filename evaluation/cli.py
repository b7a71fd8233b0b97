"""``shopreel evaluate``: tables in, a report on screen and on disk out. Needs no model and no torch."""

import sys

from data.atomic import refuse_existing, staged_directory, write_bytes, write_json
from data.errors import ConfigError
from evaluation.baseline import open_baseline
from evaluation.beyond_accuracy import beyond_accuracy
from evaluation.catalogue import Catalogue, read_catalogue
from evaluation.config import EvaluateConfig
from evaluation.dataset_slices import slice_columns
from evaluation.experiment_study import AUTOMATIC_LOG_SLICES, study_experiment
from evaluation.findings import comparison_findings, stage_findings
from evaluation.gate import failures
from evaluation.html import render
from evaluation.inputs import STAGES, beside, open_runs
from evaluation.logged import open_log
from evaluation.outcomes import tradeoff
from evaluation.policy_study import study_policy
from evaluation.prediction_study import open_all, study_predictions
from evaluation.protocol import describe_run, describe_truth, warn_of_short_lists
from evaluation.ranking import parse_metric
from evaluation.ranking_study import (
    compare_runs,
    recall_curves,
    run_estimates,
    score_run,
    slice_run,
    study_stages,
)
from evaluation.report import Report
from evaluation.terminal import show
from evaluation.tracking import log_report, require_mlflow
from evaluation.truth import Truth, read_truth

CONFIG = EvaluateConfig


def run(config: EvaluateConfig) -> int:
    """Evaluate; returns 0, or 3 where a ``fail_under`` condition does not hold."""
    if config.out is not None:
        refuse_existing(config.out, overwrite=config.overwrite)
    mlflow = require_mlflow(config.mlflow)
    report = evaluate(config)
    failed = failures(config.conditions(), report.metrics)
    show(report)
    if config.out is not None:
        with staged_directory(config.out, overwrite=config.overwrite) as scratch:
            write_json(scratch / "report.json", report.to_json())
            write_bytes(scratch / "report.html", render(report).encode())
        print(f"wrote {config.out}/report.json and report.html: open it in a browser", file=sys.stderr)
    if mlflow is not None:
        log_report(mlflow, config.mlflow, report, config.out)
    for line in failed:
        print(f"fail_under: {line}", file=sys.stderr)
    return 3 if failed else 0


def evaluate(config: EvaluateConfig) -> Report:
    """Measure everything that the given tables allow."""
    predictions = config.predictions or beside(config.run, "predictions.parquet")
    if config.run is None and predictions is None and config.log is None:
        raise ConfigError("nothing to evaluate; give run= with truth=, predictions= or log=")
    report = Report()
    opened = open_all(predictions)
    if config.run is not None:
        truth_path = config.truth or beside(config.run, "truth.parquet")
        if truth_path is None:
            raise ConfigError("run= needs truth=, the table of right videos per request")
        truth = read_truth(truth_path)
        catalogue = read_catalogue(config.dataset, truth) if config.dataset else None
        elsewhere = {name for data in opened.values() for name in data.columns()} - set(
            truth.rows.schema.names
        )
        _ranking(config, truth, catalogue, elsewhere, report)
    if opened:
        study_predictions(config, opened, report)
    if config.log is not None:
        _log(config, config.log, report)
    return report


def _log(config: EvaluateConfig, path: str, report: Report) -> None:
    """A log serves an experiment, where it has the arm's column, or an off-policy estimate, or both."""
    names = open_log(path).schema.names
    experiment = config.experiment.arm in names
    targeted = config.off_policy.target or config.off_policy.target_policy or "target_propensity" in names
    if not experiment and not targeted:
        raise ConfigError(
            f"log={path}: neither an experiment (no column {config.experiment.arm}; set experiment.arm) nor "
            "a target policy (no column target_propensity; set off_policy.target or target_policy)"
        )
    if experiment:
        slices = (
            [name for name in names if name in AUTOMATIC_LOG_SLICES]
            if config.slices == ["auto"]
            else config.slices
        )
        report.experiment = study_experiment(path, config.experiment, config.correction, slices)
        report.protocol.warnings += report.experiment.warnings
    if targeted:
        draw = {"replicates": config.replicates, "seed": config.seed}
        report.off_policy = study_policy(path, config.off_policy, **draw)
        report.protocol.warnings += report.off_policy.warnings


def _ranking(
    config: EvaluateConfig, truth: Truth, catalogue: Catalogue | None, elsewhere: set[str], report: Report
) -> None:
    settings = config.ranking_settings()
    report.protocol = describe_truth(truth, catalogue)
    sources = open_runs("run", config.run)
    report.primary = sources[-1].name if sources[-1].stage in STAGES else sources[0].name
    pairs, olds = open_baseline(config.baseline, sources, report.primary)
    runs = {source.name: score_run(source, truth, settings.names) for source in [*sources, *olds]}
    deepest = max(parse_metric(name)[1] for name in settings.names)
    for name, scored in runs.items():
        describe_run(report.protocol, name, scored, truth)
    warn_of_short_lists(report.protocol, deepest)
    report.runs = run_estimates(runs, truth, settings)
    draw = {"replicates": config.replicates, "seed": config.seed}
    k = parse_metric(settings.verdict)[1]
    report.curves = recall_curves(runs, truth, deepest, **draw)
    hits = {name: run.hits for name, run in runs.items()}
    events = catalogue.events if catalogue is not None else None
    report.tradeoff = tradeoff(hits, truth, events, k, **draw)
    if catalogue is not None:
        report.beyond = {
            name: beyond_accuracy(run.source, truth, catalogue, k, **draw) for name, run in runs.items()
        }
    report.slice_metric = settings.verdict
    columns = slice_columns(truth, [n for n in config.slices if n not in elsewhere], catalogue)
    report.slices, report.worst = slice_run(runs[report.primary], truth, columns, settings)
    for new, old in pairs:
        comparison = compare_runs((new, runs[new]), (old, runs[old]), truth, columns, settings)
        report.comparisons.append(comparison)
        report.findings += comparison_findings(comparison)
    report.stages = study_stages({s.name: runs[s.name] for s in sources}, truth, columns, settings)
    if report.stages is not None:
        report.findings += stage_findings(report.stages)
