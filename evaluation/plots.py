"""The figures of the HTML report, each from plain numbers to one inline SVG, with a legend above it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from evaluation.bootstrap import Estimate
from evaluation.comparison import Difference, p_text
from evaluation.outcomes import Tradeoff
from evaluation.ranking_study import StageStudy
from evaluation.svg import WIDTH, Axes, Canvas, linear, short, ticks
from evaluation.value_curve import ValuePoint
from evaluation.waterfall import STEPS

PALETTE = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)")
GOOD, BAD, NEUTRAL, MAIN = "var(--good)", "var(--bad)", "var(--quiet)", "var(--c0)"
Curve = Sequence[tuple[int, Estimate]]


def colour_of(index: int) -> str:
    """The colour of the n-th run."""
    return PALETTE[index % len(PALETTE)]


def recall_curve(curves: Mapping[str, Curve], metric: str = "recall") -> str:
    """A metric against the cutoff k (logarithmic), one line per run with its 95 % band.

    Runs that coincide are drawn once and named together.
    """
    groups: dict[tuple[float, ...], list[str]] = {}
    for name, curve in curves.items():
        groups.setdefault(tuple(round(e.value, 9) for _, e in curve), []).append(name)
    cutoffs = [k for k, _ in next(iter(curves.values()))]
    top = max(e.high if not math.isnan(e.high) else e.value for curve in curves.values() for _, e in curve)
    canvas = Canvas(270, f"{metric} against the number of videos looked at")
    shown = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if cutoffs[0] <= k <= cutoffs[-1]]
    axes = Axes(
        canvas, (cutoffs[0], max(cutoffs[-1], cutoffs[0] + 1)), (0.0, top * 1.05 or 1.0),
        x_title="videos looked at (k)", y_title=f"{metric}@k", x_ticks=shown, log_x=True,
    )  # fmt: skip
    labels: list[tuple[float, str, str]] = []
    for index, names in enumerate(groups.values()):
        curve, colour = curves[names[-1]], colour_of(index)
        known = [(k, e) for k, e in curve if not math.isnan(e.low)]
        canvas.band(
            [(axes.x(k), axes.y(e.low)) for k, e in known],
            [(axes.x(k), axes.y(e.high)) for k, e in known],
            colour,
        )
        canvas.path([(axes.x(k), axes.y(e.value)) for k, e in curve], colour)
        for k, e in curve:
            canvas.dot(
                axes.x(k), axes.y(e.value), colour, 2.6, f"{', '.join(names)}: {metric}@{k} {e.value:.4f}"
            )
        labels.append((axes.y(curve[-1][1].value), " = ".join(names), colour))
    return _legend([(label, colour) for _, label, colour in sorted(labels)]) + str(canvas)


def reliability(curves: Mapping[str, Sequence[tuple[float, float, int]]], task: str) -> str:
    """Observed rate against predicted probability in bins of equal mass; the diagonal is calibrated."""
    points = [point for curve in curves.values() for point in curve]
    top = max((max(p, rate) for p, rate, _ in points), default=1.0) * 1.06 or 1.0
    canvas = Canvas(270, f"reliability of {task}")
    axes = Axes(
        canvas, (0.0, top), (0.0, top), x_title="predicted probability", y_title=f"observed rate of {task}"
    )
    canvas.path([(axes.x(0), axes.y(0)), (axes.x(top), axes.y(top))], NEUTRAL, 1.4, "4 4")
    for index, (name, curve) in enumerate(curves.items()):
        colour = colour_of(index)
        error = [1.96 * math.sqrt(max(rate * (1 - rate), 0.0) / n) for _, rate, n in curve]
        canvas.band(
            [(axes.x(p), axes.y(max(rate - e, 0.0))) for (p, rate, _), e in zip(curve, error, strict=True)],
            [(axes.x(p), axes.y(min(rate + e, top))) for (p, rate, _), e in zip(curve, error, strict=True)],
            colour,
        )
        canvas.path([(axes.x(p), axes.y(rate)) for p, rate, _ in curve], colour)
        for p, rate, n in curve:
            canvas.dot(
                axes.x(p),
                axes.y(rate),
                colour,
                3.2,
                f"{name}: predicted {p:.4f}, observed {rate:.4f}, {n:,} rows",
            )
    return _legend([(name, colour_of(i)) for i, name in enumerate(curves)]) + str(canvas)


def stage_waterfall(study: StageStudy) -> str:
    """From 1 down to what was shown: one bar per step, red for loss, green for gain."""
    row, left, right = 31.0, 72.0, WIDTH - 52.0
    rows = ["all right", *study.steps, "shown"]
    canvas = Canvas(row * len(rows) + 12, f"where {study.metric} was lost, stage by stage")
    scale = linear(0.0, 1.0, left, right)
    for value in ticks(0, 1, 4):
        canvas.line((scale(value), 4), (scale(value), row * len(rows) + 4), "g")
    level = 1.0
    for index, name in enumerate(rows):
        y = index * row + 8
        change = study.steps.get(name)
        if change is None:
            begin, end = 0.0, 1.0 if index == 0 else study.final.value
            colour, label = MAIN, f"{end:.3f}"
            title = "every right video in the best order" if index == 0 else f"{study.metric} {end:.4f}"
        else:
            begin, level = level, level + change.value
            end, colour = level, BAD if change.value < 0 else GOOD
            label = f"{change.value:+.3f}" if abs(change.value) >= 0.0005 else "0"
            title = f"{STEPS[name]}: {change.value:+.4f} ({change.low:+.4f} … {change.high:+.4f})"
        canvas.text(left - 7, y + 15, name, anchor="end", style="s" if change is None else "t")
        canvas.bar(scale(begin), y, scale(end) - scale(begin), row - 10, colour, title)
        canvas.text(max(scale(begin), scale(end)) + 5, y + 15, label, style="t", title=title)
        if index < len(rows) - 1:
            canvas.line((scale(end), y + row - 10), (scale(end), y + row), "a")
    return str(canvas)


def forest(differences: Sequence[Difference]) -> str:
    """Relative differences with their intervals around 0, coloured where real; empty for equal systems."""
    kept = [d for d in differences if d.baseline and not math.isnan(d.delta.low)]
    if not any(d.delta.value for d in kept):
        return ""
    row, left, right = 27.0, 88.0, WIDTH - 62.0
    spread = [(d.delta.low / abs(d.baseline), d.delta.high / abs(d.baseline)) for d in kept]
    low, high = min(0.0, *(bounds[0] for bounds in spread)), max(0.0, *(bounds[1] for bounds in spread))
    margin = 0.05 * (high - low) or 0.01
    canvas = Canvas(row * len(kept) + 40, "relative difference of every metric")
    scale = linear(low - margin, high + margin, left, right)
    bottom = row * len(kept) + 8
    for value in ticks(low - margin, high + margin, 4):
        canvas.line((scale(value), 4), (scale(value), bottom), "g")
        canvas.text(
            scale(value),
            bottom + 16,
            f"{value:+.0%}" if high - low > 0.05 else f"{value:+.1%}",
            anchor="middle",
            style="q",
        )
    canvas.line((scale(0), 4), (scale(0), bottom), "a")
    for index, (difference, (begin, end)) in enumerate(zip(kept, spread, strict=True)):
        y = index * row + 20
        colour = {1: GOOD, -1: BAD, 0: NEUTRAL}[difference.direction]
        title = f"{difference.baseline:.4f} → {difference.value:.4f}, p {p_text(difference.p_adjusted)}"
        canvas.text(left - 8, y + 4, difference.metric, anchor="end")
        canvas.path([(scale(begin), y), (scale(end), y)], colour, 3)
        canvas.dot(scale(difference.relative), y, colour, 4.5, title)
        canvas.text(right + 8, y + 4, f"{difference.relative:+.1%}", style="t", title=title)
    return str(canvas)


def intervals(rows: Sequence[tuple[str, Estimate, bool]], label: str) -> str:
    """Named estimates with their intervals on one axis; those marked are measured, not estimated."""
    row, left, right = 27.0, 112.0, WIDTH - 56.0
    low = min(e.low if not math.isnan(e.low) else e.value for _, e, _ in rows)
    high = max(e.high if not math.isnan(e.high) else e.value for _, e, _ in rows)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    canvas = Canvas(row * len(rows) + 40, label)
    scale = linear(low - margin, high + margin, left, right)
    bottom = row * len(rows) + 8
    for value in ticks(low - margin, high + margin, 4):
        canvas.line((scale(value), 4), (scale(value), bottom), "g")
        canvas.text(scale(value), bottom + 16, short(value), anchor="middle", style="q")
    for index, (name, estimate, measured) in enumerate(rows):
        y, colour = index * row + 20, colour_of(1) if measured else MAIN
        canvas.text(left - 8, y + 4, name, anchor="end", style="s" if measured else "t")
        canvas.path([(scale(estimate.low), y), (scale(estimate.high), y)], colour, 3)
        canvas.dot(scale(estimate.value), y, colour, 4.5, f"{name}: {estimate.value:.5g}")
        canvas.text(right + 8, y + 4, f"{estimate.value:.4g}")
    return str(canvas)


def tradeoff_plot(found: Tradeoff) -> str:
    """Watch time against the other amount, a cross of intervals per run; up and right is better."""
    watch = {name: _scaled(e, 1e-3) for name, e in found.watch_ms.items()}
    factor = 0.01 if found.amount == "order_value_minor" else 1.0
    other = {name: _scaled(e, factor) for name, e in found.other.items()}
    named = "order value" if found.amount == "order_value_minor" else f"{found.amount.replace('_', ' ')}s"
    canvas = Canvas(270, f"watch time against {named}")
    axes = Axes(
        canvas, _range(watch.values()), _range(other.values()),
        x_title=f"seconds of right videos in the top {found.k}, per request",
        y_title=f"{named} in the top {found.k}, per request",
    )  # fmt: skip
    groups: dict[tuple[float, float], list[str]] = {}
    for name, wide in watch.items():
        groups.setdefault((wide.value, other[name].value), []).append(name)
    legend = []
    for index, ((x, y), names) in enumerate(groups.items()):
        colour, wide, tall = colour_of(index), watch[names[0]], other[names[0]]
        canvas.path([(axes.x(wide.low), axes.y(y)), (axes.x(wide.high), axes.y(y))], colour, 1.6)
        canvas.path([(axes.x(x), axes.y(tall.low)), (axes.x(x), axes.y(tall.high))], colour, 1.6)
        canvas.dot(axes.x(x), axes.y(y), colour, 5.5, f"{', '.join(names)}: {x:.4g} s, {y:.4g} {named}")
        legend.append((" = ".join(names), colour))
    return _legend(legend) + str(canvas)


def value_curves(curves: Mapping[str, Sequence[ValuePoint]]) -> str:
    """Share of watch time against share of order value, a line per table over the formula's weights."""
    points = [point for curve in curves.values() for point in curve]
    canvas = Canvas(270, "watch time against order value over the weights of the value formula")
    axes = Axes(
        canvas, _range(point.watch for point in points), _range(point.order_value for point in points),
        x_title="share of watch time", y_title="share of order value",
    )  # fmt: skip
    for index, (name, curve) in enumerate(curves.items()):
        colour = colour_of(index)
        for point in curve:
            x, y = axes.x(point.watch.value), axes.y(point.order_value.value)
            canvas.path([(axes.x(point.watch.low), y), (axes.x(point.watch.high), y)], NEUTRAL, 1)
            canvas.path([(x, axes.y(point.order_value.low)), (x, axes.y(point.order_value.high))], NEUTRAL, 1)
        canvas.path([(axes.x(p.watch.value), axes.y(p.order_value.value)) for p in curve], colour)
        for point in curve:
            x, y = axes.x(point.watch.value), axes.y(point.order_value.value)
            weight = "∞" if math.isinf(point.seconds_per_order) else f"{point.seconds_per_order:.3g}"
            shares = f"{point.watch.value:.3f} of watch time, {point.order_value.value:.3f} of order value"
            title = f"{name}: {weight} s an order, {shares}"
            canvas.dot(x, y, colour, 3.6, title)
            canvas.text(x + 6, y - 5, weight, style="q")
    return _legend([(name, colour_of(i)) for i, name in enumerate(curves)]) + str(canvas)


def _range(values: Iterable[Estimate]) -> tuple[float, float]:
    bounds = [b for e in values for b in (e.low, e.high)]
    margin = 0.12 * (max(bounds) - min(bounds)) or 1.0
    return max(min(bounds) - margin, 0.0), max(bounds) + margin


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor, estimate.n)


def _legend(rows: Sequence[tuple[str, str]]) -> str:
    """Names beside their colour, above the figure; nothing for a single one."""
    if len(rows) < 2:
        return ""
    items = "".join(
        f'<span><i style="background:{colour}"></i>{escape(label)}</span>' for label, colour in rows
    )
    return f'<div class="legend">{items}</div>'
