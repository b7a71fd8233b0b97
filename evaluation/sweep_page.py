"""The page of a sweep: validation over trials, over every searched number, and the table.

It reads the table that ``shopreel sweep`` writes as ``trials.parquet``, whatever trained the trials.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import pyarrow as pa

from evaluation.plots import MAIN, NEUTRAL, colour_of
from evaluation.svg import Axes, Canvas, short, ticks

#: Columns of the table before those of the searched keys.
RECORD = ("trial", "state", "value", "metric", "best_epoch", "seconds", "error", "started", "directory")
#: Up to so many different whole numbers each have a mark on the axis.
FEW = 6
Row = Mapping[str, Any]


def render_sweep(trials: pa.Table, title: str, logarithmic: Sequence[str] = ()) -> str:
    """The whole page as text; ``logarithmic`` names the searched keys that were drawn by magnitude."""
    css = resources.files("evaluation").joinpath("web/report.css").read_text(encoding="utf-8")
    rows = trials.to_pylist()
    keys = [name for name in trials.column_names if name not in RECORD]
    done = [row for row in rows if row["value"] is not None]
    metric = done[0]["metric"] if done else "value"
    counts = [f"{sum(row['state'] == s for row in rows)} {s}" for s in ("complete", "failed", "interrupted")]
    figures = ""
    if done:
        figures = _figure("Over the trials", "each trial, and the best so far", over_trials(done, metric))
        numeric = [key for key in keys if pa.types.is_floating(trials.schema.field(key).type)
                   or pa.types.is_integer(trials.schema.field(key).type)]  # fmt: skip
        figures += "".join(
            _figure(key, "each trial", over_values(done, key, metric, key in logarithmic)) for key in numeric
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>validation {escape(metric)}; {', '.join(counts)}</p></header>"
        f'<div class="figures">{figures}</div><h2>Trials, best first</h2>{_table(rows, keys, metric)}'
        "<footer>shopreel sweep; the same table for machines is trials.parquet.</footer>"
        "</main></body></html>\n"
    )


def over_trials(done: Sequence[Row], metric: str) -> str:
    """Value of every complete trial against its number, and a line of the best until then."""
    ordered = sorted(done, key=lambda row: int(row["trial"]))
    numbers = [float(row["trial"]) for row in ordered]
    canvas, axes = _frame(numbers, ordered, "trial", metric, "value of each trial and the best so far", False)
    best = list(itertools.accumulate((float(row["value"]) for row in ordered), max))
    steps = [(numbers[0], best[0])]
    for number, level in zip(numbers[1:], best[1:], strict=True):
        steps += [(number, steps[-1][1]), (number, level)]
    canvas.path([(axes.x(number), axes.y(level)) for number, level in steps], NEUTRAL, 1.6)
    _dots(canvas, axes, numbers, ordered, metric)
    return str(canvas)


def over_values(done: Sequence[Row], key: str, metric: str, logarithmic: bool) -> str:
    """Value of every complete trial against its setting of ``key``."""
    numbers = [float(row[key]) for row in done]
    canvas, axes = _frame(numbers, done, key, metric, f"{metric} against {key}", logarithmic)
    _dots(canvas, axes, numbers, done, metric)
    return str(canvas)


def _frame(
    numbers: Sequence[float], rows: Sequence[Row], x_title: str, metric: str, label: str, logarithmic: bool
) -> tuple[Canvas, Axes]:
    values = [float(row["value"]) for row in rows]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.01
    begin, end = min(numbers), max(numbers)
    logarithmic = logarithmic and begin > 0
    marks = ticks(begin, end)
    if all(number.is_integer() for number in numbers):
        few = sorted(set(numbers))
        marks = few if len(few) <= FEW else [mark for mark in marks if mark.is_integer()]
    if logarithmic:
        powers = range(math.floor(math.log10(begin)), math.ceil(math.log10(end)) + 1)
        marks = [mark for mark in (m * 10.0**p for p in powers for m in (1, 3)) if begin <= mark <= end]
        marks = marks or [begin, end]
    air = 0.0 if logarithmic else 0.03 * (end - begin)
    canvas = Canvas(250, label)
    axes = Axes(
        canvas, (begin - air, end + air), (low - margin, high + margin), x_title=x_title, y_title=metric,
        x_ticks=marks, log_x=logarithmic,
    )  # fmt: skip
    return canvas, axes


def _dots(canvas: Canvas, axes: Axes, numbers: Sequence[float], rows: Sequence[Row], metric: str) -> None:
    top = max(float(row["value"]) for row in rows)
    for number, row in zip(numbers, rows, strict=True):
        value = float(row["value"])
        words = f"trial {row['trial']}: {metric} {value:.4f} at {short(number)}"
        colour, radius = (colour_of(1), 5.0) if value == top else (MAIN, 3.4)
        canvas.dot(axes.x(number), axes.y(value), colour, radius, words)


def _figure(title: str, caption: str, body: str) -> str:
    head = f"<figcaption><h3>{escape(title)}</h3><p>{escape(caption)}</p></figcaption>"
    return f"<figure>{head}{body}</figure>"


def _table(rows: Sequence[Row], keys: Sequence[str], metric: str) -> str:
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in ("trial", metric, "epoch", "seconds"))
    head += "".join(f"<th>{escape(key)}</th>" for key in keys) + "<th></th>"
    body = ""
    for row in rows:
        value = "" if row["value"] is None else f"{row['value']:.4f}"
        epoch = "" if row["best_epoch"] is None else str(row["best_epoch"])
        cells = "".join(
            f'<td class="n">{cell}</td>' for cell in (row["trial"], value, epoch, f"{row['seconds']:,.0f}")
        )
        cells += "".join(f"<td>{escape(_shown(row[key]))}</td>" for key in keys)
        why = row["error"] or ("" if row["state"] == "complete" else row["state"])
        body += f'<tr>{cells}<td class="wrap">{escape(why)}</td></tr>'
    return f'<div class="sheet scroll"><table><tr>{head}</tr>{body}</table></div>'


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
