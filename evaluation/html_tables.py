"""The tables of the HTML report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from evaluation.bootstrap import Estimate
from evaluation.comparison import p_text
from evaluation.experiment_study import ExperimentStudy
from evaluation.policy_study import OffPolicyStudy
from evaluation.ranking_study import Comparison
from evaluation.slices import SliceValue
from evaluation.terminal import number, tail_text


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table of ready markup; all but the first ``words`` columns are numbers."""
    style = ["" if index < words else ' class="n"' for index in range(len(heads))]
    top = "".join(f"<th{s}>{escape(head)}</th>" for head, s in zip(heads, style, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{s}>{cell}</td>" for cell, s in zip(row, style, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def cell(estimate: Estimate | None) -> str:
    """The value with its interval in small print."""
    if estimate is None or math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low):
        return number(estimate.value)
    return f"{number(estimate.value)}<br><small>{number(estimate.low)} … {number(estimate.high)}</small>"


def estimate_table(runs: Mapping[str, Mapping[str, Estimate]], primary: str) -> str:
    """Metrics down, runs across, the primary run marked and first, where a phone shows it."""
    names = list(dict.fromkeys(name for metrics in runs.values() for name in metrics))
    order = sorted(runs, key=lambda run: run != primary)
    heads = ["metric", *(f"{run} ●" if run == primary and len(runs) > 1 else run for run in order)]
    rows = [[escape(name), *(cell(runs[run].get(name)) for run in order)] for name in names]
    return f'<div class="scroll">{table(heads, rows)}</div>'


def comparison_table(comparison: Comparison) -> str:
    """Every difference with its tests and the smallest effect that would have been seen."""
    rows = []
    for d in comparison.differences:
        style = {1: "up", -1: "down", 0: ""}[d.direction]
        bounds = f"<small>{d.delta.low:+.4f} … {d.delta.high:+.4f}</small>"
        change = f'<span class="{style}">{d.delta.value:+.4f}</span><br>{bounds}'
        p = escape(p_text(d.p_adjusted).removeprefix("= "))
        rows.append([escape(d.metric), number(d.baseline), number(d.value), change, p, number(d.detectable)])
    return table(["metric", "old", "new", "difference", "p", "detectable"], rows)


def worst_table(worst: Sequence[SliceValue]) -> str:
    """The slices that are certainly below the whole."""
    rows = [
        [
            escape(v.name),
            escape(v.metric),
            f"{v.share:.1%}",
            cell(v.estimate),
            f"{v.gap:+.4f}",
            escape(p_text(v.p).removeprefix("= ")),
        ]
        for v in worst
    ]
    heads = ["slice", "metric", "share", "value", "against all", "p"]
    return f'<div class="sheet scroll">{table(heads, rows, words=2)}</div>'


def off_policy_table(study: OffPolicyStudy) -> str:
    """Refusals with their reasons, then the diagnostics of the weights."""
    rows: list[list[str]] = []
    for kind, report in study.weights.items():
        facts = {
            "rows": f"{report.rows:,}",
            "effective rows": f"{report.effective_rows:,.1f}",
            "effective rewards": f"{report.effective_rewards:,.1f}",
            "mean weight (1 is right)": f"{report.mean:.4f} ± {1.96 * report.mean_error:.4f}",
            "largest weight's share": f"{report.largest_share:.2%}",
            "Pareto k of the tail": tail_text(report.pareto_k),
            "target's choices never logged": number(report.unsupported),
        }
        rows += [[f"{escape(kind)}: {name}", value] for name, value in facts.items()]
    if study.propensities is not None:
        check = study.propensities
        rows.append(["propensities that disagree with frequencies", f"{check.wrong} of {check.cells}"])
    refused = "".join(
        f"<p><b>{escape(name)}</b> refused: {escape(why)}</p>" for name, why in study.refused.items()
    )
    return refused + table(["diagnostic", "value"], rows)


def experiment_tables(study: ExperimentStudy) -> str:
    """One table per arm, and the users per arm."""
    parts = []
    for arm, uplifts in study.uplifts.items():
        rows = []
        for each in uplifts:
            change = f"{each.difference:+.4g}<br><small>{each.low:+.4g} … {each.high:+.4g}</small>"
            always = f"{each.sequence_low:+.4g} … {each.sequence_high:+.4g}"
            chances = (each.p, study.adjusted[arm][each.metric], each.p_always)
            row = [escape(each.metric), f"{each.control:.4g}", f"{each.treatment:.4g}", change]
            row += [f"{each.relative:+.1%}", *(escape(p_text(p).removeprefix("= ")) for p in chances)]
            rows.append([*row, always, f"{each.reduction:.0%}"])
        heads = ["metric", study.control, arm, "difference", "relative", "p", "corrected", "if peeked",
                 "always-valid interval", "CUPED"]  # fmt: skip
        parts.append(table(heads, rows))
    users = ", ".join(f"{escape(arm)} {count:,}" for arm, count in study.users.items())
    ratio = escape(p_text(study.sample_ratio_p))
    return "".join(parts) + f"<p>Users: {users}; sample ratio p {ratio}</p>"
