"""What an experiment's report says in words, one line each: pure functions of results.json."""

from collections.abc import Mapping
from typing import Any

from rpt import evaluation

Results = Mapping[str, Any]


def claim_lines(found: Results, goals: bool) -> list[str]:
    """One line per claim: the goals, or the others."""
    return [_claim_line(found, claim) for claim in found["claims"] if claim["goal"] == goals]


def _claim_line(found: Results, claim: Mapping[str, Any]) -> str:
    pooled = claim["pooled"]
    if pooled is None:
        return f"not measured: {claim['what']}"
    shown = "shown" if pooled["shown"] else "not shown"
    n = ", ".join(str(one["n"]) for one in claim["seeds"].values())
    line = f"{shown}: {interval(pooled['difference'])}  {claim['what']}, n {n}"
    if len(found["seeds"]) > 1:
        each = ", ".join(
            f"{interval(one['difference'])}{'' if one['shown'] else ' (no)'}"
            for one in claim["seeds"].values()
        )
        line += f"; shown in {pooled['seeds_shown']} of {pooled['seeds']} seeds: {each}"
    return line


def notes(found: Results) -> list[str]:
    """What else decides whether a figure counts: missing parts, few seeds, gates, leaks."""
    lines = [f"missing: {name} has not been evaluated" for name in found["missing"]]
    if len(found["seeds"]) > 1:
        lines.append(
            f"{len(found['seeds'])} seeds are few: a pooled interval is that of the mean of these "
            "seeds, over their documents; what other seeds would give, the seeds' own figures hint"
        )
    for arm, seeds in found["gates"].items():
        for seed, gate in seeds.items():
            state = "passed" if gate["passed"] else "NOT passed: no claim shown on what starts here"
            lines.append(
                f"gate of {arm}, seed {seed}, {state} (shallow with-thought accuracy "
                f"{gate['accuracy']:.3f}, asked {gate['threshold']})"
            )
    for arm in found["arms"].values():
        checks = {seed: entry["parts"][evaluation.ALL] for seed, entry in arm["seeds"].items()}
        leaks = [seed for seed, table in checks.items() if _leak(table["leak_check"])]
        if leaks:
            lines.append(
                f"LEAK: {arm['title']} predicts noise better than by guessing, by more than 3 "
                f"sigma, in seed {', '.join(leaks)}"
            )
    return lines


def _leak(check: Mapping[str, Any] | None) -> bool:
    return check is not None and check["leak_suspected"]


def interval(value: Mapping[str, Any]) -> str:
    low, high = ("?" if end is None else f"{end:+.3f}" for end in (value["low"], value["high"]))
    return f"{value['mean']:+.3f} [{low}, {high}]"


def featured(found: Results) -> list[str]:
    """The arms that the goals speak of; all where there are no goals."""
    names = [name for claim in found["claims"] if claim["goal"] for name in claim["arms"]]
    return [name for name in found["arms"] if not names or name in names]
