"""The plan as it was when the reported split was first read, and what of it has changed since.

W/evaluation/plan_SPLIT.json is written before the first reading and never again: time, commit and
the plan (as in a piece). Pieces carry it, so that the report can say it without the run.
"""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rpt import runs

# What is claimed, beside the claims themselves.
_CLAIMED = ("hypothesis", "split", "claim_part", "least_positions")
Plan = Mapping[str, Any]


def record(root: pathlib.Path, split: str, plan: Plan) -> None:
    """Before the first reading of a split; later ones change nothing."""
    path = _path(root, split)
    was_read = any(path.parent.glob(f"*/{split}/results.json"))
    if not path.is_file() and not was_read:
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(path, {**now(), "plan": plan})


def now() -> dict[str, str]:
    """Time and commit."""
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": runs.commit()}


def recorded(root: pathlib.Path, split: str) -> dict[str, Any] | None:
    """What `record` wrote; None: the split was read by a version that did not."""
    path = _path(root, split)
    return json.loads(path.read_text()) if path.is_file() else None


def _path(root: pathlib.Path, split: str) -> pathlib.Path:
    return root / "evaluation" / f"plan_{split}.json"


def changes(before: Plan, after: Plan) -> list[str]:
    """What is claimed otherwise: fields, claims that are new or others, goals that are dropped.

    Claims that are no goals may be left out, as by fewer arms in the same directory.
    """
    old, new = ({claim["name"]: claim for claim in plan["claims"]} for plan in (before, after))
    dropped = [name for name, claim in old.items() if claim["goal"] and name not in new]
    return [
        *(name for name in _CLAIMED if before[name] != after[name]),
        *(f"claim {name}" for name, claim in new.items() if claim != old.get(name)),
        *(f"without the goal {name}" for name in dropped),
    ]


def history(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """`plan` of results.json, from the content of pieces; None: a first reading is not recorded.

    Returns:
      time and commit of the first reading of all; `changed`, as `changes` between the plan then and
      now; time and commit of the first of these changes as `changed_time` and `changed_commit`,
      null where there is none.
    """
    if any(piece["claimed"] is None for piece in pieces):
        return None
    first = min(pieces, key=lambda piece: (piece["claimed"]["time"], piece["seed"], piece["arm"]))
    claimed = first["claimed"]
    changed = changes(claimed["plan"], first["plan"])
    later = [one for one in first["renewals"] if not set(changed).isdisjoint(one["changed"])]
    return {
        "time": claimed["time"],
        "commit": claimed["commit"],
        "changed": changed,
        "changed_time": later[0]["time"] if later else None,
        "changed_commit": later[0]["commit"] if later else None,
    }


def words(found: Mapping[str, Any]) -> str:
    """One sentence without its full stop, from results.json."""
    plan, split = found["plan"], found["split"]
    if plan is None:
        return f"what was claimed when {split} was first read has not been recorded"
    line = f"plan of commit {plan['commit']}, when {split} was first read ({plan['time']})"
    if not plan["changed"]:
        return f"{line}; unchanged since"
    when = "since"
    if plan["changed_time"] is not None:
        when = f"at {plan['changed_time']} (commit {plan['changed_commit']})"
    return f"{line}; CHANGED {when}: {', '.join(plan['changed'])}"
