"""The report's charts as PNG files, for documents and slides."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from data import extras
from rpt import report_charts, report_svg

# The page's colours on light paper (rpt/report_assets/page.css).
_TONES = ("#6b7079", "#0063a6", "#b5520a", "#00785a", "#8e4585", "#7a6100", "#a52a3a")


def write(folder: pathlib.Path, charts: Mapping[str, Sequence[report_charts.Chart]]) -> None:
    """One file for each name that has charts.

    Raises:
      ValueError: matplotlib is not installed.
    """
    extras.load("matplotlib", "plot").use("Agg")
    plt = extras.load("matplotlib.pyplot", "plot")
    folder.mkdir(exist_ok=True)
    for name, of_name in charts.items():
        if not of_name:
            continue
        columns = min(len(of_name), 2)
        rows = math.ceil(len(of_name) / columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(5.6 * columns, 3.6 * rows), squeeze=False, layout="constrained"
        )
        for axis, chart in zip(axes.flat, of_name, strict=False):
            _draw(axis, chart)
        for axis in axes.flat[len(of_name) :]:
            axis.set_axis_off()
        # Names stand where the final layout has the ends of the lines.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axis, chart in zip(axes.flat, of_name, strict=False):
            _names(axis, chart)
        figure.savefig(folder / f"{name}.png", dpi=144)
        plt.close(figure)


def _draw(axis, chart: report_charts.Chart) -> None:
    scale = 100 if chart.kind == "share" else 1
    for line in chart.lines:
        x, y, colour = line.x, scale * line.y, _TONES[line.tone]
        if line.low is not None and line.high is not None:
            axis.fill_between(
                x, scale * line.low, scale * line.high, color=colour, alpha=0.15, lw=0
            )
        if line.marks:
            axis.plot(x, y, "o", color=colour, ms=4)
            continue
        style = "--" if line.dashed else "-"
        axis.plot(
            x,
            y,
            style,
            color=colour,
            lw=0.8 if line.faint else 1.8,
            alpha=0.35 if line.faint else 1,
        )
    unit = f"{chart.y_label}, %" if chart.kind == "share" else chart.y_label
    axis.set_title(chart.title, loc="left", fontsize=10, fontweight="bold")
    axis.set_xlabel(chart.x_label, fontsize=9)
    axis.set_ylabel(unit, fontsize=9)
    if chart.log_x:
        axis.set_xscale("log")
    if chart.zero:
        axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", lw=0.7)
    axis.tick_params(labelsize=8.5)
    if any(line.name for line in chart.lines):  # room for names behind the ends of the lines
        low, high = axis.get_xlim()
        wider = high * (high / low) ** 0.22 if chart.log_x else high + 0.22 * (high - low)
        axis.set_xlim(low, wider)


def _names(axis, chart: report_charts.Chart) -> None:
    """Beside the ends of their lines, pushed apart where they would touch."""
    scale, ends = 100 if chart.kind == "share" else 1, []
    for line in chart.lines:
        kept = np.isfinite(line.y)
        if line.name and kept.any():
            ends.append((line.x[kept][-1], scale * line.y[kept][-1], line))
    ends.sort(key=lambda end: end[1])
    pixels = [axis.transData.transform(end[:2])[1] for end in ends]
    points = 72 / axis.figure.dpi
    low, high = axis.transData.transform([(1, y) for y in axis.get_ylim()])[:, 1]
    places = report_svg.spread(pixels, 10 / points, low, high)
    for (x, y, line), pixel, place in zip(ends, pixels, places, strict=True):
        axis.annotate(
            line.name,
            (x, y),
            xytext=(4, (place - pixel) * points),
            textcoords="offset points",
            color=_TONES[line.tone],
            va="center",
            fontsize=8.5,
        )
