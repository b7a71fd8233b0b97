"""``shopreel evaluate``: tables in, a report on screen and on disk out. Needs no model and no torch."""

import sys

from data.atomic import refuse_existing
from data.errors import ConfigError
from evaluation.baseline import open_baseline
from evaluation.catalogue import Catalogue, read_catalogue
from evaluation.config import EvaluateConfig
from evaluation.dataset_slices import slice_columns
from evaluation.findings import comparison_findings, stage_findings
from evaluation.gate import failures
from evaluation.inputs import beside, named_paths, open_runs
from evaluation.prediction_study import study_predictions
from evaluation.protocol import describe_run, describe_truth
from evaluation.ranking import parse_metric
from evaluation.ranking_study import compare_runs, run_estimates, score_run, slice_run, study_stages
from evaluation.report import Report, write_report
from evaluation.terminal import show
from evaluation.truth import Truth, read_truth

CONFIG = EvaluateConfig


def run(config: EvaluateConfig) -> int:
    """Evaluate; returns 0, or 3 where a ``fail_under`` condition does not hold."""
    if config.out is not None:
        refuse_existing(config.out, overwrite=config.overwrite)
    report = evaluate(config)
    failed = failures(config.conditions(), report.metrics)
    show(report)
    if config.out is not None:
        write_report(report, config.out, overwrite=config.overwrite)
        print(f"wrote {config.out}/report.json", file=sys.stderr)
    for line in failed:
        print(f"fail_under: {line}", file=sys.stderr)
    return 3 if failed else 0


def evaluate(config: EvaluateConfig) -> Report:
    """Measure everything that the given tables allow."""
    predictions = config.predictions or beside(config.run, "predictions.parquet")
    if config.run is None and predictions is None:
        raise ConfigError("nothing to evaluate; give run= with truth=, or predictions=")
    report = Report()
    if config.run is not None:
        truth_path = config.truth or beside(config.run, "truth.parquet")
        if truth_path is None:
            raise ConfigError("run= needs truth=, the table of right videos per request")
        truth = read_truth(truth_path)
        catalogue = read_catalogue(config.dataset, truth) if config.dataset else None
        _ranking(config, truth, catalogue, report)
    if predictions is not None:
        study_predictions(config, named_paths(predictions), report)
    return report


def _ranking(config: EvaluateConfig, truth: Truth, catalogue: Catalogue | None, report: Report) -> None:
    settings = config.ranking_settings()
    report.protocol = describe_truth(truth, catalogue)
    sources = open_runs("run", config.run)
    report.primary = sources[-1].name if sources[-1].stage else sources[0].name
    pairs, olds = open_baseline(config.baseline, sources, report.primary)
    runs = {source.name: score_run(source, truth, settings.names) for source in [*sources, *olds]}
    deepest = max(parse_metric(name)[1] for name in settings.names)
    for name, scored in runs.items():
        describe_run(report.protocol, name, scored, truth, deepest)
    report.runs = run_estimates(runs, truth, settings)
    report.slice_metric = settings.verdict
    columns = slice_columns(truth, config.slices, catalogue)
    report.slices, report.worst = slice_run(runs[report.primary], truth, columns, settings)
    for new, old in pairs:
        comparison = compare_runs((new, runs[new]), (old, runs[old]), truth, columns, settings)
        report.comparisons.append(comparison)
        report.findings += comparison_findings(comparison, settings.verdict)
    report.stages = study_stages({s.name: runs[s.name] for s in sources}, truth, columns, settings)
    if report.stages is not None:
        report.findings += stage_findings(report.stages)
