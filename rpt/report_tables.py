"""The tables of an experiment's report.md, on its page: the same rows, made by the same code."""

import dataclasses
import html

from rpt import experiment_tables, report_data, report_results


def tables(report: report_data.Report) -> str:
    """Of every results.json, over all its seeds."""
    parts = [f'<p class="lead">{html.escape(experiment_tables.READING)}</p>']
    for place, found in report.results.items():
        for table in experiment_tables.tables(found):
            title = f"{place} \u00b7 {table.title}" if place else table.title
            titled = dataclasses.replace(table, title=title)
            parts.append(f"<h3>{html.escape(title)}</h3>{report_results.of_cells(titled)}")
    return "".join(parts)
