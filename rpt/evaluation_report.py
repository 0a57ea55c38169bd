"""Results of an evaluation, for people to read on a terminal."""

from typing import Any

import rich.table

from rpt import evaluation, evaluation_positions

# What the table needs where the terminal does not say how wide it is.
WIDTH = 132
_COLUMNS = (
    *("part", "positions", "n", "no think", "thought", "sampled"),
    *("thought - no think", "answers", "tokens", "MFLOP a token"),
)


def result_table(results: dict[str, Any]) -> rich.table.Table:
    """Bins and labels: without a thought, and the argmax and sampled answer after thoughts."""
    table = rich.table.Table(title=f"{results['model']['path']} on {results['split']}")
    for number, name in enumerate(_COLUMNS):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for part, entry in results["parts"].items():
        labels = {} if part == evaluation.ALL else entry["labels"]
        for name, row in {**entry["bins"], **labels}.items():
            if row is None:
                continue
            gain, flops = row["thought_argmax_minus_no_think"], row["flops_per_predicted_token"]
            low, high = (
                "?" if end is None else f"{end:+.3f}" for end in (gain["low"], gain["high"])
            )
            table.add_row(
                part,
                name,
                str(row["n"]),
                f"{row[row['baseline']]['mean']:.3f}",
                f"{row['thought_argmax']['mean']:.3f}",
                f"{row['thought_sample']['mean']:.3f}",
                f"{gain['mean']:+.3f} [{low}, {high}]",
                f"{row['answer_rate']:.0%}",
                f"{row['mean_thought_tokens']:.1f}",
                f"{flops['no_think'] / 1e6:.1f} -> {flops['thought'] / 1e6:.1f}",
            )
    return table


def lines(results: dict[str, Any]) -> list[str]:
    """What the table does not say: gated thinking and ablations by part, a warning of a leak."""
    return [*_gated_lines(results), *_ablation_lines(results), *_warnings(results)]


def _gated_lines(results: dict[str, Any]) -> list[str]:
    found = []
    for part, entry in (results["gated"] or {}).items():
        reported = entry["reported"]
        gain = reported["thought_argmax_minus_no_think"]
        shown = "shown" if reported["gain_shown"] else "not shown"
        found.append(
            f"gated, {part}: {reported['thought_argmax']:.4f} on all tokens against "
            f"{entry['no_think']['mean']:.4f} without thought ({gain['mean']:+.4f}, {shown}); "
            f"{reported['share']:.0%} of positions think above {reported['threshold']:.2f} nats, "
            f"{reported['thought_tokens_per_document_token']:.2f} thought tokens a token"
        )
    return found


def _ablation_lines(results: dict[str, Any]) -> list[str]:
    found = []
    for part, entry in results["parts"].items():
        hard = entry["bins"][evaluation_positions.hardest(entry["bins"])]
        if hard is None or not hard["ablations"]:
            continue
        remains = ", ".join(
            f"{name} {row['accuracy']['mean']:.3f} ({row['minus_thought_argmax']['mean']:+.3f})"
            for name, row in hard["ablations"].items()
        )
        true = hard["thought_argmax"]["mean"]
        found.append(f"thoughts altered, hard tokens of {part}: {remains}; true {true:.3f}")
    return found


def _warnings(results: dict[str, Any]) -> list[str]:
    return [
        f"WARNING: noise is predicted better than by guessing ({part}): a leak"
        for part, entry in results["parts"].items()
        if entry["leak_check"] and entry["leak_check"]["leak_suspected"]
    ]
