"""``shopreel evaluate``: tables in, a report on screen and on disk out. Needs no model and no torch."""

import sys

from data.atomic import refuse_existing
from data.errors import ConfigError
from evaluation.bootstrap import estimates
from evaluation.config import EvaluateConfig
from evaluation.gate import failures
from evaluation.hits import find_hits
from evaluation.inputs import RunSource, beside, open_runs
from evaluation.protocol import describe_run, describe_truth
from evaluation.ranking import parse_metric, score_requests
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
    runs = open_runs("run", config.run)
    truth_path = config.truth or beside(config.run, "truth.parquet")
    if not runs:
        raise ConfigError("nothing to evaluate; give run= and truth=, see shopreel evaluate --help")
    if truth_path is None:
        raise ConfigError("run= needs truth=, the table of right videos per request")
    report = Report()
    _ranking(config, runs, read_truth(truth_path), report)
    return report


def _ranking(config: EvaluateConfig, runs: list[RunSource], truth: Truth, report: Report) -> None:
    report.protocol = describe_truth(truth)
    names = config.ranking_names()
    deepest = max(parse_metric(name)[1] for name in names)
    for source in runs:
        hits = find_hits("run", source.table, truth, source.where)
        describe_run(report.protocol, source.name, source.path, hits, deepest)
        value_RM = score_requests(hits, truth, names)
        found = estimates(value_RM, truth.user_R, replicates=config.replicates, seed=config.seed)
        report.runs[source.name] = dict(zip(names, found, strict=True))
    report.primary = runs[-1].name if runs[-1].stage else runs[0].name
