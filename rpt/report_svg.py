"""Charts as inline SVG: no script, colours by class: light, dark and print are style alone.

A chart is drawn for a width of about 380 px, which a phone has and a column of a wide screen; it
scales with its place. Names stand at the ends of their lines; a legend would be a second look.
"""

import html
import math
from collections.abc import Iterator, Sequence

import numpy as np

from rpt import report_charts

WIDTH, HEIGHT = 380, 232
_TOP, _BOTTOM, _LEFT = 12, 36, 42
_CHARACTER = 7.0  # width of a character of a label in a wide font, 11.5 px bold
_LABEL_GAP = 13
_MOST_LABEL = 118


def render(chart: report_charts.Chart) -> str:
    """One <svg>; its label says in words what it shows."""
    names = [line.name for line in chart.lines if line.name]
    right = min(_MOST_LABEL, 10 + _CHARACTER * max(map(len, names), default=0))
    x_scale = _Scale.over(
        _finite([line.x for line in chart.lines]), _LEFT, WIDTH - right, chart.log_x
    )
    values = [v for line in chart.lines for v in (line.y, line.low, line.high) if v is not None]
    y_scale = _Scale.over(_finite(values), HEIGHT - _BOTTOM, _TOP, False, chart.zero, 0.04)
    label = html.escape(summary(chart))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">',
        *_axes(chart, x_scale, y_scale),
        *(_line(line, x_scale, y_scale) for line in sorted(chart.lines, key=_depth)),
        *_labels(chart.lines, x_scale, y_scale),
        "</svg>",
    ]
    return "".join(parts)


def summary(chart: report_charts.Chart) -> str:
    """What is drawn over what, and where each named line ends."""
    ends = []
    for line in chart.lines:
        known = line.y[np.isfinite(line.y)]
        if line.name and len(known):
            ends.append(f"{line.name} ends at {_value(chart, float(known[-1]))}")
    words = f"{chart.title}: {chart.y_label} over {chart.x_label}"
    return f"{words}; {', '.join(ends)}" if ends else words


def _value(chart: report_charts.Chart, value: float, digits: int = 3) -> str:
    share = chart.kind == "share"
    return f"{100 * value:.{digits}g}%" if share else f"{value:.{digits}g}"


def _depth(line: report_charts.Line) -> tuple[bool, bool, bool]:
    """What is drawn first lies behind: what is faint, then bands, then lines, then marks."""
    return not line.faint, line.low is None, line.marks


def _finite(arrays: Sequence[np.ndarray]) -> np.ndarray:
    joined = np.concatenate([np.asarray(array, np.float64) for array in arrays])
    return joined[np.isfinite(joined)]


class _Scale:
    """From values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool):
        self.low, self.high, self.log = low, high, log
        self.start, self.end = start, end

    @classmethod
    def over(
        cls,
        values: np.ndarray,
        start: float,
        end: float,
        log: bool,
        zero: bool = False,
        margin: float = 0.0,
    ) -> "_Scale":
        """Over all values, with a margin at ends that are not 0."""
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        if log:
            low, high = math.log10(max(low, 1e-300)), math.log10(max(high, 1e-300))
        if high <= low:
            low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
        if zero and low > 0:
            low = 0.0
        space = margin * (high - low)
        return cls(low if low == 0 else low - space, high + space, start, end, log)

    def __call__(self, value: np.ndarray | float) -> np.ndarray:
        value = np.asarray(value, np.float64)
        place = np.log10(np.maximum(value, 1e-300)) if self.log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values; on a logarithmic axis 1, 2 and 5 times powers of ten, as many as fit."""
        if self.log:
            decades = range(math.floor(self.low) - 1, math.ceil(self.high) + 1)
            for mantissas in ((1, 2, 5), (1, 3), (1,)):
                found = [m * 10.0**d for d in decades for m in mantissas]
                found = [v for v in found if self.low <= math.log10(v) <= self.high]
                if len(found) <= most:
                    return found
            return found[:: math.ceil(len(found) / most)]
        rough = (self.high - self.low) / most
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _axes(chart: report_charts.Chart, x_scale: _Scale, y_scale: _Scale) -> Iterator[str]:
    left, right = x_scale.start, x_scale.end
    bottom = HEIGHT - _BOTTOM
    for tick in y_scale.ticks(5):
        y = float(y_scale(tick))
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        yield _text(left - 6, y + 3.5, "end", _value(chart, tick, 4))
    yield f'<path class="axis" d="M{left:.1f} {bottom}H{right:.1f}"/>'
    for tick in x_scale.ticks(5):
        x = float(x_scale(tick))
        yield f'<path class="axis" d="M{x:.1f} {bottom}v4"/>'
        yield _text(x, bottom + 16, "middle", f"{tick:.4g}")
    yield _text(right, HEIGHT - 5, "end", chart.x_label)


def _text(x: float, y: float, anchor: str, text: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="tick" {place}>{html.escape(text)}</text>'


def _line(line: report_charts.Line, x_scale: _Scale, y_scale: _Scale) -> str:
    kept = np.isfinite(line.x) & np.isfinite(line.y)
    x, y = x_scale(line.x[kept]), y_scale(line.y[kept])
    tone = f"t{line.tone}"
    if line.marks:
        dots = (f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.4"/>' for a, b in zip(x, y, strict=True))
        return f'<g class="marks {tone}">{"".join(dots)}</g>'
    band = ""
    if line.low is not None and line.high is not None:
        there, back = y_scale(line.high[kept]), y_scale(line.low[kept])
        path = _path(np.concatenate([x, x[::-1]]), np.concatenate([there, back[::-1]]))
        band = f'<path class="band {tone}" d="{path}Z"/>'
    kind = "faint" if line.faint else "dashed" if line.dashed else "line"
    return f'{band}<path class="{kind} {tone}" d="{_path(x, y)}"/>'


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _labels(lines: Sequence[report_charts.Line], x_scale: _Scale, y_scale: _Scale) -> Iterator[str]:
    """Names at the ends of their lines, pushed apart where they would touch."""
    ends = []
    for line in lines:
        kept = np.isfinite(line.y)
        if line.name and kept.any():
            ends.append((float(y_scale(line.y[kept][-1])), float(x_scale(line.x[kept][-1])), line))
    ends.sort(key=lambda end: end[0])
    place = spread([end[0] for end in ends], _LABEL_GAP, _TOP + 2, HEIGHT - _BOTTOM - 2)
    edge = x_scale.end
    for y, (from_y, x, line) in zip(place, ends, strict=True):
        if edge - x > _LABEL_GAP:  # a line that ends early is led to its name
            path = f"M{x + 3:.1f} {from_y:.1f}L{edge:.1f} {y:.1f}"
            yield f'<path class="leader t{line.tone}" d="{path}"/>'
        yield (
            f'<text class="name t{line.tone}" x="{edge + 6:.1f}" y="{y + 3.5:.1f}">'
            f"{html.escape(line.name)}</text>"
        )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places at least `gap` apart, near the wanted ones, within limits if they fit."""
    placed: list[float] = []
    for value in wanted:
        placed.append(max(value, low if not placed else placed[-1] + gap))
    limit = high
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed
