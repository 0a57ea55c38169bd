"""What an experiment found: claims with their intervals, tables, curves, made of pieces alone.

    python -m rpt.experiment_report --pieces=runs/mini --out=report

makes results.json, report.md and curves.png again from the pieces in a folder and below it
(rpt/experiment_pieces.py), without a checkpoint; of an unfinished experiment, from what there is.

results.json, strict JSON (E is {mean, low, high}, 95%, bootstrap over documents; keys below `seeds`
are seeds; what is pooled is the mean over seeds, its bootstrap over the documents of each):

    hypothesis, seeds, commits (of the evaluations), split, claim_part, bin (the hardest), bins_nats
    shown_depth  of the plan
    plan         of the first reading of the split: time, commit; `changed` since then (hypothesis,
                 split, claim_part, least_positions, claims), changed_time, changed_commit; null:
                 the first reading was not recorded
    missing      evaluations that the plan has, in its seeds, and that are not there yet
    gates        by run and seed: accuracy, threshold, passed
    claims       each: name, what, goal, arms;
      seeds        difference E, n, supported (enough positions, gates passed, a gated arm thinks
                   enough and gains by it), shown (supported, and the lower end is above 0)
      pooled       difference E, standard_deviation of the seeds' means, seeds, seeds_shown, shown
                   (measured in all seeds of the plan, supported in every measured one, and the
                   lower end is above 0); null: not measured
    arms         each: title, command, init, curve;
      seeds        params_sha256, test_reading, compute, documents (of points of a curve: per
                   document n and right ones), and for 'all' and each part of the mixture `parts`:
        bins         n, no_think E (the better context), thought_argmax E, thought_sample E,
                     thought_argmax_minus_no_think E, answer_rate, over_budget_rate,
                     mean_thought_tokens, ablations if there are any; or null
        labels       n and means
        hard_by_kind what the hard bin consists of: n and means by kind of label
        asked        n and means at labelled tokens but noise, without labels at all tokens
        every_position, leak_check, gated       as in rpt/evaluate.py
      pooled       E over the seeds, by part (rpt/experiment_pooled.py)
      history      by seed: averages of training metrics
    compute      flops_executed, flops_as_rows (had each rollout been a row of its own),
                 wall_seconds, document_tokens: with all that the arm continues; the same without
                 the first of these, flops_executed_after_stage0 (of a fresh arm all);
                 flops_executed_alone, wall_seconds_alone; parameters; data (epochs by source, of
                 each run); inference_flops_per_token {no_think, thought}
    rlvr         pairs of arms: before, after; the second was trained by reward on a source that
                 nothing before it was trained on
    scaling      by curve the points: arm, seed, flops, flops_after_stage0, wall_seconds,
                 value {no_think, thought_argmax, thought_sample: E}, documents
    scaling_fits the three forms fitted to these points (rpt/scaling_studies.py)
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.table
from absl import flags

from rpt import (
    cli,
    experiment_curves,
    experiment_lines,
    experiment_pieces,
    experiment_preregistration,
    experiment_results,
    experiment_scaling_tables,
    experiment_tables,
    runs,
)

_WIDTH = 160


def make(
    pieces: Sequence[experiment_pieces.Piece],
    out: pathlib.Path,
    *,
    seeds: tuple[int, ...] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Writes results.json, report.md and curves.png; returns the first.

    Args:
      pieces: of one experiment, at least one.
      out: folder, made if missing.
      seeds: that are asked for; None is the plan's.
      quiet: print no tables.

    Raises:
      PermissionError: it cannot be written.
    """
    found = experiment_results.results(pieces, seeds)
    json.dumps(found, allow_nan=False)  # strict, or nothing is written
    try:
        out.mkdir(parents=True, exist_ok=True)
        runs.write_json(out / "results.json", found)
        (out / "report.md").write_text("\n".join(markdown(found)))
        experiment_curves.draw(found, out / "curves.png")
    except OSError as error:
        raise PermissionError(f"cannot write to {out}: {error.strerror}") from None
    if not quiet:
        _print(found)
    print(f"report in {out / 'report.md'}, curves in {out / 'curves.png'}")
    return found


def markdown(found: dict[str, Any]) -> list[str]:
    """The lines of report.md."""
    seeds = ", ".join(map(str, found["seeds"]))
    lines = [f"# RPT experiment, seed{'s' * (len(found['seeds']) > 1)} {seeds}"]
    claimed = experiment_preregistration.words(found)
    lines += ["", found["hypothesis"], "", f"{claimed[0].upper()}{claimed[1:]}.", ""]
    claims = {
        "Goals": experiment_lines.claim_lines(found, goals=True),
        "Other claims": experiment_lines.claim_lines(found, goals=False),
        "What to bear in mind": experiment_lines.notes(found),
    }
    for title, items in claims.items():
        if items:
            lines += [f"## {title}", "", *(f"- {item}" for item in items), ""]
    lines += [experiment_tables.READING, ""]
    of_results = experiment_tables.tables(found)
    for table in [*of_results, *experiment_scaling_tables.tables(found)]:
        lines += [f"## {table.title}", "", *table.markdown(), ""]
    commits = ", ".join(found["commits"])
    return [
        *lines,
        *(
            "![curves](curves.png)",
            "",
            f"Evaluated at commit {commits}. All figures: results.json.",
        ),
        "",
    ]


def _print(found: dict[str, Any]) -> None:
    console = rich.console.Console()
    console.width = max(console.width, _WIDTH)
    overview = experiment_tables.overview(found)
    table = rich.table.Table(title=overview.title)
    for number, head in enumerate(overview.heads):
        table.add_column(head.name, justify="right" if number else "left")
    for row in overview.rows:
        table.add_row(*(cell.text for cell in row))
    console.print(table)
    goals = experiment_lines.claim_lines(found, goals=True)
    others = experiment_lines.claim_lines(found, goals=False)
    lines = [*experiment_lines.notes(found), *(f"goal {line}" for line in goals), *others]
    print("\n".join(lines))


def main(argv: list[str]) -> None:
    del argv
    make(experiment_pieces.read_folder(pathlib.Path(_PIECES.value)), pathlib.Path(_OUT.value))


if __name__ == "__main__":
    _PIECES = flags.DEFINE_string("pieces", None, "Folder of pieces.", required=True)
    _OUT = flags.DEFINE_string("out", None, "Where the report goes.", required=True)
    cli.run(main)
