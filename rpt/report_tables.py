"""The tables of an experiment's report.md, on its page: the same rows, made by the same code."""

import html

from rpt import experiment_cells, experiment_tables, report_data, report_results

_text = html.escape


def tables(report: report_data.Report) -> str:
    """Of every results.json, over all its seeds."""
    parts = [f'<p class="lead">{_text(experiment_tables.READING)}</p>']
    for place, found in report.results.items():
        for table in experiment_tables.tables(found):
            title = f"{place} \u00b7 {table.title}" if place else table.title
            parts.append(f"<h3>{_text(title)}</h3>{_table(title, table)}")
    return "".join(parts)


def _table(title: str, table: experiment_cells.Table) -> str:
    rows = [
        [_text(text) + (f"<small>{_text(each)}</small>" if each else "") for text, each in row]
        for row in table.rows
    ]
    return report_results.table(title, table.heads, rows)
