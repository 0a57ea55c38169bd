"""The page: sections in their order, one style sheet, one script, nothing from elsewhere.

Its own policy forbids everything but this style and this very script (by its hash), so that even a
thought that were not escaped could not run.
"""

import base64
import hashlib
import html
import pathlib
from collections.abc import Callable, Sequence

from rpt import (
    report_data,
    report_evaluation,
    report_ledger,
    report_reader,
    report_results,
    report_tables,
    scaling_points,
)

_ASSETS = pathlib.Path(__file__).with_name("report_assets")
# What a results.json or summary.json of another version lacks shows as one of these.
_UNREADABLE = (KeyError, TypeError, ValueError, IndexError, AttributeError)


def page(report: report_data.Report, studies: Sequence[scaling_points.Study]) -> str:
    """The whole page."""
    sections: list[tuple[str, str, Callable[[], str]]] = []
    if report.with_results:
        sections.append(("claims", "Claims", lambda: report_results.claims(report)))
        sections.append(("arms", "Arms", lambda: report_results.arms(report)))
    if report.results:
        sections.append(("tables", "Tables", lambda: report_tables.tables(report)))
    if any(run.evaluations for e in report.experiments for run in e.runs.values()):
        sections.append(("evaluation", "Evaluation", lambda: report_evaluation.tables(report)))
    if studies:
        sections.append(("scaling", "Scaling", lambda: report_results.scaling(studies)))
    sections += [
        ("training", "Training", lambda: report_results.training(report)),
        ("thoughts", "Thoughts", lambda: report_reader.reader(report)),
        ("compute", "Compute", lambda: report_ledger.ledgers(report)),
        ("alarms", "Alarms", lambda: report_ledger.alarms(report)),
        ("origin", "Origin", lambda: report_ledger.origin(report)),
    ]
    script = (_ASSETS / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    values = {
        "title": html.escape(report.title),
        "subtitle": _subtitle(report),
        "contents": "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections),
        "sections": "\n".join(_section(*section) for section in sections),
        "footer": _footer(report),
        "style": (_ASSETS / "page.css").read_text(),
        "script": script,
        "script_hash": f"sha256-{digest}",
    }
    filled = (_ASSETS / "page.html").read_text()
    # One pass over the template: what is filled in may itself hold braces.
    pieces = filled.split("{{")
    return pieces[0] + "".join(
        values[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:])
    )


def _section(key: str, name: str, content: Callable[[], str]) -> str:
    """A section that cannot be made says so: an unfinished experiment is no error."""
    try:
        inside = content()
    except ValueError as error:
        inside = f'<p class="quiet">Nothing here: {html.escape(str(error))}.</p>'
    except _UNREADABLE as error:
        inside = (
            '<p class="quiet">Cannot be shown: a file lacks what this version expects '
            f"({html.escape(repr(error))}).</p>"
        )
    return f'<section class="part" id="{key}"><h2>{name}</h2>\n{inside}\n</section>'


def _subtitle(report: report_data.Report) -> str:
    parts = [label for label in (e.label for e in report.experiments) if label]
    for _, results in report.with_results[:1]:
        commits = ", ".join(commit[:12] for commit in results["commits"])
        parts.append(f"evaluated at commit {commits}")
    times = [
        start["time"]
        for experiment in report.experiments
        for run in experiment.runs.values()
        for start in run.starts
        if "time" in start
    ]
    if times:
        parts.append(f"begun {min(times)[:10]}")
    return html.escape(" \u00b7 ".join(parts))


def _footer(report: report_data.Report) -> str:
    missing = len(report.missing)
    lacks = f" {missing} pieces are missing; they are listed under Origin." if missing else ""
    return (
        "Intervals are 95% percentile intervals of a bootstrap over documents; differences are "
        f"paired on identical positions.{lacks}"
    )
