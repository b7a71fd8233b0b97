"""Just enough SVG to draw the report's figures: scales, axes, lines, bands and labels, no script.

Figures are 360 units wide, about a phone's width, so that their text stays legible there; colours come
from CSS variables, so that they follow the reader's light or dark theme.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH = 360
Point = tuple[float, float]
Scale = Callable[[float], float]


def linear(low: float, high: float, begin: float, end: float) -> Scale:
    """Maps [low, high] to [begin, end]; a range of width 0 maps to the middle."""
    if high <= low:
        return lambda _: (begin + end) / 2
    return lambda value: begin + (value - low) / (high - low) * (end - begin)


def logarithmic(low: float, high: float, begin: float, end: float) -> Scale:
    """Like :func:`linear` on a logarithmic axis; both bounds above 0."""
    inner = linear(math.log(low), math.log(high), begin, end)
    return lambda value: inner(math.log(max(value, low)))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about ``count`` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A tick's label: ``0.25``, ``1.5k``, ``2M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


class Canvas:
    """An SVG under construction; ``str(canvas)`` is the element."""

    def __init__(self, height: float, label: str, width: float = WIDTH) -> None:
        self.width, self.height, self.label = width, height, label
        self.parts: list[str] = []

    def add(self, markup: str) -> None:
        """Append raw SVG markup."""
        self.parts.append(markup)

    def text(
        self, x: float, y: float, words: str, *, anchor: str = "start", style: str = "t", title: str = ""
    ) -> None:
        """A label; ``style`` is a class of the style sheet (t text, q quiet, s strong)."""
        inside = f"<title>{escape(title)}</title>" if title else ""
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self.add(f'<text {place} class="{style}">{inside}{escape(words)}</text>')

    def line(self, start: Point, end: Point, style: str) -> None:
        """A straight line of a class of the style sheet (g grid, a axis)."""
        (x1, y1), (x2, y2) = start, end
        self.add(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>')

    def path(self, points: Sequence[Point], colour: str, width: float = 2.2, dash: str = "") -> None:
        """A line through points."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.add(
            f'<polyline points="{_points(points)}" fill="none" stroke="{colour}" stroke-width="{width}"'
            f' stroke-linejoin="round" stroke-linecap="round"{dashed}/>'
        )

    def band(self, lower: Sequence[Point], upper: Sequence[Point], colour: str) -> None:
        """The area between two lines, faint."""
        outline = [*lower, *reversed(upper)]
        self.add(f'<polygon points="{_points(outline)}" fill="{colour}" opacity=".16"/>')

    def dot(self, x: float, y: float, colour: str, radius: float = 4.0, title: str = "") -> None:
        """A filled circle with a tooltip."""
        inside = f"<title>{escape(title)}</title>" if title else ""
        self.add(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}">{inside}</circle>')

    def bar(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str,
        title: str = "",
        opacity: float = 1.0,
    ) -> None:
        """A rectangle with a tooltip; negative widths are turned round."""
        if width < 0:
            x, width = x + width, -width
        inside = f"<title>{escape(title)}</title>" if title else ""
        self.add(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1.5):.1f}" height="{height:.1f}" rx="3"'
            f' fill="{colour}" opacity="{opacity:.2f}">{inside}</rect>'
        )

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.label)}">'
            f"{''.join(self.parts)}</svg>"
        )


class Axes:
    """A framed plotting area with grid, tick labels and axis titles."""

    def __init__(
        self, canvas: Canvas, x_range: Point, y_range: Point, *, x_title: str, y_title: str,
        x_ticks: Sequence[float] | None = None, log_x: bool = False,
    ) -> None:  # fmt: skip
        left, right, top, bottom = 44.0, canvas.width - 10.0, 26.0, canvas.height - 42.0
        scale = logarithmic if log_x else linear
        self.x = scale(*x_range, left, right)
        self.y = linear(*y_range, bottom, top)
        for value in ticks(*y_range):
            canvas.line((left, self.y(value)), (right, self.y(value)), "g")
            canvas.text(left - 7, self.y(value) + 4, short(value), anchor="end", style="q")
        for value in ticks(*x_range) if x_ticks is None else x_ticks:
            canvas.line((self.x(value), bottom), (self.x(value), bottom + 4), "a")
            canvas.text(self.x(value), bottom + 18, short(value), anchor="middle", style="q")
        canvas.line((left, bottom), (right, bottom), "a")
        canvas.text((left + right) / 2, canvas.height - 6, x_title, anchor="middle", style="q")
        canvas.text(left - 40, 14, y_title, style="q")


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
