"""One self-contained HTML page: verdicts and findings, figures, tables, and what they rest on."""

from html import escape
from importlib import resources

from evaluation import plots
from evaluation.heatmap import heat_map
from evaluation.html_tables import (
    comparison_table,
    estimate_table,
    experiment_tables,
    off_policy_table,
    worst_table,
)
from evaluation.protocol import readable
from evaluation.ranking_study import Comparison
from evaluation.report import Report
from evaluation.slices import MIN_USERS
from evaluation.terminal import number

#: Metrics whose values stand as large numbers at the top, where the report has them.
CARDS = ("ndcg", "recall", "hit", "mrr")
PREDICTION_CARDS = ("auc", "ne")


def render(report: Report) -> str:
    """The whole page as text. It loads nothing: styles and figures stand inside."""
    css = resources.files("evaluation").joinpath("web/report.css").read_text(encoding="utf-8")
    sections = [
        _headlines(report),
        _ranking(report),
        _comparisons(report),
        _slices(report),
        _beyond(report),
        _predictions(report),
        _off_policy(report),
        _experiment(report),
        _protocol(report),
    ]
    title = escape(_title(report))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{css}</style></head><body><main>"
        f"<header><h1>{title}</h1><p>{escape(_subtitle(report))}</p></header>"
        f"{''.join(sections)}<footer>shopreel evaluate; numbers for machines are in report.json. "
        "Intervals are 95 %, by bootstrap over users.</footer></main></body></html>\n"
    )


def figure(title: str, caption: str, body: str, *, wide: bool = False) -> str:
    """A captioned figure; empty bodies vanish."""
    if not body:
        return ""
    style = ' class="wide"' if wide else ""
    head = f"<figcaption><h3>{escape(title)}</h3><p>{escape(caption)}</p></figcaption>"
    return f"<figure{style}>{head}{body}</figure>"


def _title(report: Report) -> str:
    dataset = report.protocol.facts.get("dataset")
    return f"Evaluation · {dataset}" if isinstance(dataset, str) else "Evaluation"


def _subtitle(report: Report) -> str:
    facts = report.protocol.facts
    parts = [f"{facts[key]:,} {key.replace('_', ' ')}" for key in ("users", "right_videos") if key in facts]
    if isinstance(facts.get("catalogue_size"), int):
        parts.append(f"{facts['catalogue_size']:,} videos ranked")
    return " · ".join(parts)


def _headlines(report: Report) -> str:
    verdicts = [_verdict(report, comparison) for comparison in _ordered(report)]
    parts = verdicts[:1]
    if verdicts[1:]:
        parts.append(
            f"<details><summary>{len(verdicts) - 1} more verdicts</summary>{''.join(verdicts[1:])}</details>"
        )
    for line in report.experiment.verdicts if report.experiment is not None else ():
        head, _, rest = line.partition(": ")
        parts.append(f'<div class="verdict"><strong>{escape(head)}</strong><span>{escape(rest)}</span></div>')
    parts.append(_cards(report))
    if report.findings:
        items = "".join(f"<li>{escape(finding.text)}</li>" for finding in report.findings[:8])
        parts.append(f'<ul class="findings">{items}</ul>')
    return "".join(parts)


def _ordered(report: Report) -> list[Comparison]:
    """The comparison of the primary run first."""
    return sorted(report.comparisons, key=lambda comparison: comparison.new != report.primary)


def _verdict(report: Report, comparison: Comparison) -> str:
    main = next((d for d in comparison.differences if d.metric == report.slice_metric), None)
    main = main or (comparison.differences[0] if comparison.differences else None)
    side = {1: "better", -1: "worse", 0: ""}[main.direction if main is not None else 0]
    head, _, rest = comparison.verdict.partition(": ")
    return f'<div class="verdict {side}"><strong>{escape(head)}</strong><span>{escape(rest)}</span></div>'


def _cards(report: Report) -> str:
    cutoff = report.slice_metric.partition("@")[2]
    task = next(
        (name.partition("/")[2] for name in next(iter(report.predictions.values()), {}) if "/" in name), ""
    )
    names = [f"{kind}@{cutoff}" for kind in (CARDS[:3] if report.predictions else CARDS)]
    names += [f"{kind}/{task}" for kind in PREDICTION_CARDS] + ["xauc/watch"]
    found = {name: report.metrics[name] for name in dict.fromkeys(names) if name in report.metrics}
    cells = "".join(
        f"<div><small>{escape(name)}</small><b>{number(e.value)}</b>"
        f"<small>{number(e.low)} … {number(e.high)}</small></div>"
        for name, e in found.items()
    )
    return f'<div class="cards">{cells}</div>' if cells else ""


def _ranking(report: Report) -> str:
    if not report.runs:
        return ""
    figures = []
    if report.curves:
        figures.append(
            figure(
                "Recall curve",
                "share of the right videos found in the top k",
                plots.recall_curve(report.curves),
            )
        )
    if report.stages is not None:
        figures.append(
            figure(
                f"Where {report.stages.metric} went",
                "from every right video in the best order down to what was shown; the steps add up",
                plots.stage_waterfall(report.stages),
            )
        )
    if report.tradeoff is not None:
        figures.append(
            figure(
                "Watch time and business",
                "up and to the right is better",
                plots.tradeoff_plot(report.tradeoff),
            )
        )
    cutoff = report.slice_metric.partition("@")[2]
    at = {run: {n: e for n, e in m.items() if n.endswith(f"@{cutoff}")} for run, m in report.runs.items()}
    shown = f'<div class="sheet below"><h3>At {cutoff}</h3>{estimate_table(at, report.primary)}</div>'
    table = estimate_table(report.runs, report.primary)
    return (
        f'<h2>Ranking</h2><div class="figures">{"".join(figures)}</div>{shown}'
        f"<details><summary>Every metric of every run</summary>{table}</details>"
    )


def _comparisons(report: Report) -> str:
    parts = []
    for comparison in _ordered(report):
        caption = "relative difference with its interval; coloured where the corrected test finds it real"
        picture = figure(
            f"{comparison.new} against {comparison.old}", caption, plots.forest(comparison.differences)
        )
        sheet = f'<div class="sheet scroll">{comparison_table(comparison)}</div>'
        if picture:
            parts.append(f'<div class="pair">{picture}{sheet}</div>')
    return f"<h2>Is it real?</h2>{''.join(parts)}" if parts else ""


def _slices(report: Report) -> str:
    if not report.slices:
        return ""
    heat = heat_map(report)
    worst = ""
    if report.worst:
        caption = '<p class="note">each among what is left without those above it</p>'
        worst = f'<h3 class="apart">Worst slices</h3>{caption}{worst_table(report.worst)}'
    note = (
        "Slices of the request in the verdict's metric, slices of the video in recall of those videos. "
        "Stage columns: share lost of what reached the stage. Colour: distance from the whole; bold where "
        "that is certain; pale where fewer than "
        f"{MIN_USERS} users stand behind it."
    )
    return f'<h2>For whom?</h2><p class="note">{note}</p><div class="sheet scroll">{heat}</div>{worst}'


def _beyond(report: Report) -> str:
    if not report.beyond:
        return ""
    table = estimate_table(report.beyond, report.primary)
    return f'<h2>Beyond accuracy</h2><div class="sheet">{table}</div>'


def _predictions(report: Report) -> str:
    if not report.predictions:
        return ""
    tasks = dict.fromkeys(task for curves in report.reliability.values() for task in curves)
    figures = []
    for task in tasks:
        curves = {n: c[task] for n, c in report.reliability.items() if c.get(task)}
        if curves:
            caption = "15 bins of equal mass; on the dashed line a predicted 10 % happens 10 % of the time"
            figures.append(figure(f"Reliability of {task}", caption, plots.reliability(curves, task)))
    if report.value_curves:
        caption = (
            "shares held by the better half of every request, from watch time alone to order value alone; "
            "the numbers are seconds that a mean order is worth"
        )
        figures.append(
            figure("Watch time against order value", caption, plots.value_curves(report.value_curves))
        )
    table = estimate_table(report.predictions, "")
    pictures = f'<div class="figures">{"".join(figures)}</div>'
    return f'<h2>Predictions</h2>{pictures}<div class="sheet below">{table}</div>'


def _off_policy(report: Report) -> str:
    study = report.off_policy
    if study is None:
        return ""
    rows = [("logging policy", study.logging, True)]
    if study.on_policy is not None:
        rows.append(("target, measured", study.on_policy, True))
    rows += [(name, estimate, False) for name, estimate in study.estimates.items()]
    picture = figure(
        f"Mean {study.reward} under the target policy",
        "bold rows were measured, the others are estimated from the logging policy's log",
        plots.intervals(rows, f"off-policy estimates of mean {study.reward}"),
    )
    sheet = f'<div class="sheet scroll">{off_policy_table(study)}</div>'
    return f'<h2>What would it have earned?</h2><div class="pair">{picture}{sheet}</div>'


def _experiment(report: Report) -> str:
    if report.experiment is None:
        return ""
    return f'<h2>Experiment</h2><div class="sheet scroll">{experiment_tables(report.experiment)}</div>'


def _protocol(report: Report) -> str:
    warnings = "".join(f"<li>{escape(line)}</li>" for line in report.protocol.warnings)
    rows = "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(readable(value))}</dd>"
        for key, value in report.protocol.facts.items()
        if key not in ("runs", "predictions") and readable(value)
    )
    runs = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(readable(facts))}</dd>"
        for key in ("runs", "predictions")
        for name, facts in report.protocol.facts.get(key, {}).items()
    )
    listed = f'<ul class="warnings">{warnings}</ul>' if warnings else ""
    return (
        f'<h2>Protocol</h2>{listed}<div class="sheet"><dl>{rows}</dl>'
        f"<details><summary>Files</summary><dl>{runs}</dl></details></div>"
    )
