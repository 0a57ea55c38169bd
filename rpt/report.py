"""A report that one opens in a browser: one page of an experiment, of its seeds, or of a run.

    python -m rpt.report runs/mini            an experiment, of one seed or more
    python -m rpt.report runs                 a folder of experiments, side by side
    python -m rpt.report runs/mini/rpt        a run

Writes report.html there, which holds everything it shows, and its plots as PNG files under plots/.
What is not there yet is said in the page. docs/report.md explains what is seen.
"""

import pathlib
import sys
from collections.abc import Sequence

from data import commands
from rpt import (
    files,
    report_charts,
    report_data,
    report_html,
    report_png,
    scaling_points,
    scaling_studies,
)

PAGE, PLOTS = "report.html", "plots"


def write(root: pathlib.Path, *, resamples: int = scaling_points.RESAMPLES) -> pathlib.Path:
    """Writes page and plots; returns the page's path.

    Args:
      root: an experiment's directory, a folder of them, or a run's.
      resamples: of the intervals of scaling curves.

    Raises:
      FileNotFoundError, ValueError: there is nothing to report on.
      PermissionError: it cannot be written there.
    """
    report = report_data.gather(root)
    studies, notes = _studies(report, resamples)
    report = report_data.noting(report, notes)
    try:
        files.write(root / PAGE, report_html.page(report, studies).encode())
        report_png.write(root / PLOTS, _charts(report, studies))
    except OSError as error:
        raise PermissionError(f"cannot write to {root}: {error.strerror}") from None
    return root / PAGE


def _studies(
    report: report_data.Report, resamples: int
) -> tuple[list[scaling_points.Study], list[str]]:
    """Every curve and measure, with stage 0 and without; and why some are not there."""
    found, notes = [], []
    for curve, measure, _, study in scaling_studies.studies(report.points, resamples):
        if isinstance(study, str):
            notes.append(f"scaling of {curve}, {measure}: {study}")
        else:
            found.append(study)
    return found, list(dict.fromkeys(notes))


def _charts(
    report: report_data.Report, studies: Sequence[scaling_points.Study]
) -> dict[str, list[report_charts.Chart]]:
    """The plots by the name of their file."""
    return {
        "training": report_charts.training(report),
        "depths": report_charts.depths(report),
        "gates": report_charts.gates(report),
        "scaling": [report_charts.scaling(study) for study in studies],
    }


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise ValueError("give one directory: python -m rpt.report WORKDIR")
    print(f"report in {write(pathlib.Path(sys.argv[1]))}")


if __name__ == "__main__":
    commands.run(main)
