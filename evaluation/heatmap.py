"""Slices down, measures across, coloured by the distance from the whole."""

import math
from html import escape

from evaluation.comparison import p_text
from evaluation.report import Report
from evaluation.significance import ALPHA
from evaluation.slices import MIN_USERS, SliceValue
from evaluation.terminal import number

#: Strongest colour, in per cent, of a difference that is certain and of one that is not.
CERTAIN, UNCERTAIN = 62.0, 14.0


def heat_map(report: Report) -> str:
    """The primary run's metric, every stage's loss and every comparison's difference per slice."""
    tables: dict[str, list[SliceValue]] = {report.primary: report.slices}
    if report.stages is not None:
        tables |= {f"{step} loss": values for step, values in report.stages.slices.items() if _moves(values)}
    tables |= {f"{c.new} − {c.old}": c.slices for c in report.comparisons if _moves(c.slices)}
    by_name = {head: {value.name: value for value in values} for head, values in tables.items()}
    heads = "".join(f'<th class="n">{escape(head)}</th>' for head in tables)
    rows, column = [], ""
    for value in report.slices:
        if value.column != column:
            column = value.column
            title = f"{escape(column)} <small>{escape(value.metric)}</small>"
            rows.append(f'<tr><th class="group" colspan="{len(tables) + 2}">{title}</th></tr>')
        cells = [_cell(head, found.get(value.name), _widest(tables[head])) for head, found in by_name.items()]
        part = f"{value.share:.0%}" if value.share >= 0.005 or not value.share else "< 1%"
        share = f'<td class="n"><small>{part}</small></td>'
        pale = ' class="few"' if value.estimate.n < MIN_USERS else ""
        rows.append(f"<tr{pale}><td>{escape(value.label)}</td>{share}{''.join(cells)}</tr>")
    top = f'<thead><tr><th>slice</th><th class="n">share</th>{heads}</tr></thead>'
    return f'<table class="heat">{top}<tbody>{"".join(rows)}</tbody></table>'


def _cell(head: str, value: SliceValue | None, widest: float) -> str:
    if value is None or math.isnan(value.estimate.value):
        return '<td class="n">–</td>'
    sure = not math.isnan(value.p) and value.p < ALPHA
    few = value.estimate.n < MIN_USERS
    strength = min(abs(value.gap) / widest, 1.0) if widest and not math.isnan(value.gap) else 0.0
    strength *= CERTAIN if sure else 0.0 if few else UNCERTAIN
    colour = "var(--good)" if value.gap > 0 else "var(--bad)"
    text = f"{-value.estimate.value:.0%}" if head.endswith(" loss") else number(value.estimate.value)
    if " − " in head:
        text = f"{value.estimate.value:+.4f}"
    bounds = f"{value.metric} {value.estimate.low:.4f} … {value.estimate.high:.4f}"
    title = f"{bounds}, {value.gap:+.4f} against all, p {p_text(value.p)}, {value.estimate.n:,} users"
    background = f"background:color-mix(in srgb, {colour} {strength:.0f}%, transparent)"
    shown = f"<b>{text}</b>" if sure else text
    return f'<td class="n" style="{background}" title="{escape(title)}">{shown}</td>'


def _moves(values: list[SliceValue]) -> bool:
    return any(abs(value.estimate.value) > 1e-12 for value in values if not math.isnan(value.estimate.value))


def _widest(values: list[SliceValue]) -> float:
    return max((abs(value.gap) for value in values if not math.isnan(value.gap)), default=0.0)
