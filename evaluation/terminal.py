"""The report on screen: verdicts and findings first, then the numbers, then what they rest on."""

import math
import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluation.bootstrap import Estimate
from evaluation.comparison import p_text
from evaluation.experiment_study import ExperimentStudy
from evaluation.policy_study import OffPolicyStudy
from evaluation.protocol import STATED, readable
from evaluation.ranking import METRICS
from evaluation.ranking_study import Comparison, StageStudy
from evaluation.report import Metrics, Report
from evaluation.waterfall import STEPS

BAR = 24
PIPED_WIDTH = 120


def show(report: Report, console: Console | None = None) -> None:
    """Print ``report`` to standard output."""
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    _headlines(report, console)
    if len(report.runs) == 1:
        _one_run(report.metrics, console)
    elif report.runs:
        cutoff = report.slice_metric.partition("@")[2]
        shown = {
            name: {metric: e for metric, e in metrics.items() if metric.endswith(f"@{cutoff}")}
            for name, metrics in report.runs.items()
        }
        _side_by_side(f"Ranking at {cutoff}", shown, console, report.primary)
    for comparison in report.comparisons:
        _comparison(comparison, console)
    if report.stages is not None:
        _waterfall(report.stages, console)
    _worst(report, console)
    if report.beyond:
        _side_by_side("Beyond accuracy", report.beyond, console, report.primary)
    if report.off_policy is not None:
        _off_policy(report.off_policy, console)
    if report.experiment is not None:
        _experiment(report.experiment, console)
    if report.predictions:
        _side_by_side("Predictions", report.predictions, console)
    _protocol(report, console)


def cell(estimate: Estimate | None) -> str:
    """``0.1234 0.1200 … 0.1270``, or a dash for what could not be measured."""
    if estimate is None or math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low):
        return number(estimate.value)
    return f"{number(estimate.value)} [dim]{number(estimate.low)} … {number(estimate.high)}[/dim]"


def short_cell(estimate: Estimate | None) -> str:
    """``0.1234 ±0.0040``, half the interval's width, for tables of many runs."""
    if estimate is None or math.isnan(estimate.value) or math.isnan(estimate.low):
        return cell(estimate)
    half = (estimate.high - estimate.low) / 2
    shown = f"{half:,.0f}" if abs(estimate.value) >= 100 else number(half)
    return f"{number(estimate.value)} [dim]±{shown}[/dim]"


def number(value: float) -> str:
    """Four decimals for small numbers, thousands separated for large ones, a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"


def tail_text(pareto_k: float) -> str:
    """The shape of a tail of weights; weights of a finite set have none."""
    return "no tail" if pareto_k == -math.inf else number(pareto_k)


def _headlines(report: Report, console: Console) -> None:
    for comparison in report.comparisons:
        console.print(f"[bold]Verdict[/bold]  {escape(comparison.verdict)}")
    for line in report.experiment.verdicts if report.experiment is not None else ():
        console.print(f"[bold]Verdict[/bold]  {escape(line)}")
    for finding in report.findings[:8]:
        console.print(f"[bold red]Look at[/bold red]  {escape(finding.text)}")


def _table(title: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        title=f"[bold]{escape(title)}[/bold]",
        title_justify="left",
        title_style="",
        pad_edge=False,
    )


def _one_run(metrics: Metrics, console: Console) -> None:
    """Kinds of metric down, cutoffs across."""
    ranking = [name for name in metrics if name.partition("@")[0] in METRICS and "@" in name]
    cutoffs = sorted({int(name.partition("@")[2]) for name in ranking})
    table = _table("Ranking, with 95 % intervals")
    table.add_column("metric")
    for k in cutoffs:
        table.add_column(f"@{k}", justify="right", no_wrap=True)
    for kind in dict.fromkeys(name.partition("@")[0] for name in ranking):
        table.add_row(kind, *(cell(metrics.get(f"{kind}@{k}")) for k in cutoffs))
    console.print(table)


def _side_by_side(title: str, runs: dict[str, Metrics], console: Console, primary: str = "") -> None:
    table = _table(f"{title}, with 95 % intervals")
    table.add_column("metric", no_wrap=True)
    for run in runs:
        table.add_column(escape(run), justify="right", no_wrap=True, style="bold" if run == primary else None)
    for name in dict.fromkeys(name for metrics in runs.values() for name in metrics):
        table.add_row(escape(name), *(short_cell(metrics.get(name)) for metrics in runs.values()))
    console.print(table)


def _comparison(comparison: Comparison, console: Console) -> None:
    table = _table(f"{comparison.new} against {comparison.old}")
    for heading in (
        "metric",
        comparison.old,
        comparison.new,
        "difference",
        "relative",
        "p",
        "corrected",
        "detectable",
    ):
        table.add_column(escape(heading), justify="left" if heading == "metric" else "right", no_wrap=True)
    for difference in comparison.differences:
        colour = {1: "green", -1: "red", 0: "default"}[difference.direction]
        relative = "–" if math.isnan(difference.relative) else f"{difference.relative:+.1%}"
        low, high = difference.delta.low, difference.delta.high
        table.add_row(
            difference.metric,
            number(difference.baseline),
            number(difference.value),
            f"[{colour}]{difference.delta.value:+.4f}[/{colour}] [dim]{low:+.4f} … {high:+.4f}[/dim]",
            relative,
            p_text(difference.p).removeprefix("= "),
            p_text(difference.p_adjusted).removeprefix("= "),
            number(difference.detectable),
        )
    console.print(table)


def _waterfall(study: StageStudy, console: Console) -> None:
    table = _table(f"Where {study.metric} went")
    for heading in ("stage", "", "change", "95 %", "meaning"):
        table.add_column(
            heading, justify="right" if heading == "change" else "left", no_wrap=heading != "meaning"
        )
    table.add_row("all right videos", _bar(0.0, 1.0, "blue"), "1.0000", "", "")
    level = 1.0
    for step, change in study.steps.items():
        start, level = level, level + change.value
        colour = "red" if change.value < 0 else "green"
        bounds = f"[dim]{change.low:+.4f} … {change.high:+.4f}[/dim]"
        table.add_row(
            step,
            _bar(min(start, level), max(start, level), colour),
            f"{change.value:+.4f}",
            bounds,
            STEPS[step],
        )
    table.add_row("shown", _bar(0.0, max(level, 0.0), "blue"), number(study.final.value), "", "")
    console.print(table)


def _bar(low: float, high: float, colour: str) -> str:
    begin, end = round(low * BAR), round(high * BAR)
    blocks = "█" * (end - begin) or "▏"
    return f"{' ' * begin}[{colour}]{blocks}[/{colour}]"


def _worst(report: Report, console: Console) -> None:
    if not report.worst:
        return
    table = _table(f"Worst slices of {report.primary}, each among what is left without those above it")
    for heading in ("slice", "metric", "share", "value", "against all", "p"):
        table.add_column(heading, justify="left" if heading in ("slice", "metric") else "right", no_wrap=True)
    for value in report.worst:
        row = (
            escape(value.name),
            value.metric,
            f"{value.share:.1%}",
            cell(value.estimate),
            f"{value.gap:+.4f}",
            p_text(value.p).removeprefix("= "),
        )
        table.add_row(*row)
    console.print(table)


def _off_policy(study: OffPolicyStudy, console: Console) -> None:
    table = _table(f"What the target policy would have earned: mean {study.reward}")
    table.add_column("estimator")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("why not")
    table.add_row("logging policy, measured", cell(study.logging), "")
    if study.on_policy is not None:
        table.add_row("target policy, measured", cell(study.on_policy), "")
    for name in [*study.estimates, *study.refused]:
        table.add_row(name, cell(study.estimates.get(name)), escape(study.refused.get(name, "")))
    console.print(table)
    for kind, report in study.weights.items():
        parts = [
            f"{report.rows:,} rows worth {report.effective_rows:,.0f}",
            f"rewards worth {report.effective_rewards:,.1f}",
            f"mean {report.mean:.3f} ±{1.96 * report.mean_error:.3f}",
            f"largest {report.largest_share:.1%}",
            f"Pareto k {tail_text(report.pareto_k)}",
        ]
        console.print(f"[bold]Weights[/bold]  {kind}: {', '.join(parts)}")


def _experiment(study: ExperimentStudy, console: Console) -> None:
    for arm, uplifts in study.uplifts.items():
        table = _table(f"{arm} against {study.control}")
        for heading in (
            "metric",
            study.control,
            arm,
            "difference",
            "relative",
            "p",
            "corrected",
            "if peeked",
            "CUPED",
        ):
            table.add_column(
                escape(heading), justify="left" if heading == "metric" else "right", no_wrap=True
            )
        for each in uplifts:
            chances = (each.p, study.adjusted[arm][each.metric], each.p_always)
            table.add_row(
                each.metric,
                f"{each.control:.4g}",
                f"{each.treatment:.4g}",
                f"{each.difference:+.4g} [dim]{each.low:+.4g} … {each.high:+.4g}[/dim]",
                f"{each.relative:+.1%}",
                *(p_text(p).removeprefix("= ") for p in chances),
                f"−{each.reduction:.0%}" if each.reduction else "–",
            )
        console.print(table)
    users = ", ".join(f"{arm} {count:,}" for arm, count in study.users.items())
    console.print(f"[bold]Users[/bold]  {users}; sample ratio p {p_text(study.sample_ratio_p)}")


def _protocol(report: Report, console: Console) -> None:
    facts = report.protocol.facts
    counts = ("requests", "users", "right_videos", "catalogue_size")
    parts = [f"{facts[key]:,} {key.replace('_', ' ')}" for key in counts if isinstance(facts.get(key), int)]
    parts += [
        f"{key.replace('_', ' ')}: {escape(_short(readable(facts[key])))}"
        for key in STATED
        if key in facts and key not in counts
    ]
    if parts:
        console.print("[bold]Protocol[/bold]  " + " · ".join(parts))
    _lines("[yellow]Warning[/yellow]", report.protocol.warnings, console)


def _lines(mark: str, lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.print(f"{mark}  {escape(line)}")


def _short(text: str) -> str:
    return text if len(text) <= 90 else text[:89] + "…"
