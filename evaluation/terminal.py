"""The report on screen: one table per family of metrics, then the protocol and its warnings."""

import math

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluation.bootstrap import Estimate
from evaluation.protocol import STATED
from evaluation.report import Report


def show(report: Report, console: Console | None = None) -> None:
    """Print ``report`` to standard output."""
    console = console or Console(highlight=False, soft_wrap=False)
    if report.runs:
        _metrics(report, console)
    _protocol(report, console)


def _metrics(report: Report, console: Console) -> None:
    names = list(dict.fromkeys(name for metrics in report.runs.values() for name in metrics))
    table = Table(
        box=box.SIMPLE_HEAD, title="Metrics with 95 % intervals", title_justify="left", pad_edge=False
    )
    table.add_column("metric", no_wrap=True)
    for run in report.runs:
        style = "bold" if run == report.primary and len(report.runs) > 1 else None
        table.add_column(escape(run), justify="right", no_wrap=True, header_style=style)
    previous = None
    for name in names:
        kind = name.partition("@")[0]
        if previous is not None and kind != previous:
            table.add_section()
        previous = kind
        table.add_row(name, *(cell(metrics.get(name)) for metrics in report.runs.values()))
    console.print(table)


def cell(estimate: Estimate | None) -> str:
    """``.1234 [.1200, .1270]``, or a dash for what could not be measured."""
    if estimate is None or math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low):
        return number(estimate.value)
    return f"{number(estimate.value)} [dim][{number(estimate.low)}, {number(estimate.high)}][/dim]"


def number(value: float) -> str:
    """Four significant places for small numbers, thousands separated for large ones."""
    if math.isnan(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def _protocol(report: Report, console: Console) -> None:
    facts = report.protocol.facts
    parts = [
        f"{facts[key]:,} {key.replace('_', ' ')}"
        for key in ("requests", "users", "right_videos")
        if key in facts
    ]
    parts += [f"{key.replace('_', ' ')}: {escape(str(facts[key]))}" for key in STATED if key in facts]
    if parts:
        console.print("[bold]Protocol[/bold]  " + " · ".join(parts))
    for warning in report.protocol.warnings:
        console.print(f"[yellow]warning[/yellow]  {escape(warning)}")
