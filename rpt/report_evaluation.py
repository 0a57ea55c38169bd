"""Evaluations of a run by itself (rpt.evaluate), as HTML."""

import html

from rpt import report_data, report_results

_COLUMNS = (
    ("bin, nats", "entropy under the frozen reference"),
    ("positions", ""),
    ("no thought", "argmax, the better of two contexts"),
    ("thought", "the answer after it by argmax"),
    ("sampled", "the answer after it sampled"),
    ("thought \u2212 no thought", "paired on the same positions"),
    ("answers", "share of thoughts that come to one"),
    ("tokens", "mean length of a thought"),
)


def tables(report: report_data.Report) -> str:
    """A table of bins for every run, split and part."""
    parts = []
    for experiment in report.experiments:
        for run in experiment.runs.values():
            for split, results in run.evaluations.items():
                for part, found in results["parts"].items():
                    name = " \u00b7 ".join(
                        p for p in (experiment.label, run.label, split, part) if p
                    )
                    rows = [
                        [
                            html.escape(bin),
                            f"{row['n']:,}",
                            report_results.interval(row[row["baseline"]]),
                            report_results.interval(row["thought_argmax"]),
                            report_results.interval(row["thought_sample"]),
                            report_results.signed(row["thought_argmax_minus_no_think"]),
                            f"{row['answer_rate']:.1%}",
                            f"{row['mean_thought_tokens']:.1f}",
                        ]
                        for bin, row in found["bins"].items()
                        if row is not None
                    ]
                    parts.append(
                        f"<h3>{html.escape(name)}</h3>{report_results.table(name, _COLUMNS, rows)}"
                    )
    return "".join(parts)
