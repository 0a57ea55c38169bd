"""The tables of an experiment's report, for people: pure functions of results.json.

A cell is the mean over seeds, and with several seeds each of them behind it in brackets.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rpt import evaluation, experiment_results

_DIRECT, _THOUGHT, _SAMPLED = "no_think", "thought_argmax", "thought_sample"
_PAIR = "without / with thought"
_MISSING = "-"

Results = Mapping[str, Any]
# From the entry of an arm and seed to a number; None where it was not measured.
Getter = Callable[[Mapping[str, Any]], float | None]


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, the names of its columns, and the cells of its rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> list[str]:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return ["| " + " | ".join(line) + " |" for line in lines]


@dataclasses.dataclass(frozen=True)
class _Column:
    name: str
    get: Getter
    digits: int = 3
    unit: str = ""

    def cell(self, entries: Sequence[Mapping[str, Any]], each_seed: bool) -> str:
        values = [value for entry in entries if (value := self.get(entry)) is not None]
        if not values:
            return _MISSING
        mean = f"{sum(values) / len(values):.{self.digits}f}{self.unit}"
        if len(entries) == 1 or not each_seed:
            return mean
        # Two digits tell seeds apart well enough.
        digits = min(self.digits, 2)
        return f"{mean} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def _table(
    found: Results,
    title: str,
    columns: Sequence[_Column],
    arms: Sequence[str] | None = None,
    each_seed: bool = True,
) -> Table:
    """A row per arm."""
    rows = []
    for name in found["arms"] if arms is None else arms:
        arm = found["arms"][name]
        entries = list(arm["seeds"].values())
        rows.append([arm["title"], *(column.cell(entries, each_seed) for column in columns)])
    return Table(title, ["arm", *(column.name for column in columns)], rows)


def _at(*path: str, scale: float = 1.0) -> Getter:
    """The number at a path of an entry; the mean where an estimate stands there."""

    def get(entry: Mapping[str, Any]) -> float | None:
        value: Any = entry
        for name in path:
            value = None if value is None else value.get(name)
        if isinstance(value, Mapping):
            value = value["mean"]
        return None if value is None else value * scale

    return get


def _pair(name: str, *path: str) -> list[_Column]:
    return [
        _Column(f"{name}, no thought", _at(*path, _DIRECT)),
        _Column(f"{name}, thought", _at(*path, _THOUGHT)),
    ]


# ---- the tables ----------------------------------------------------------------------------------


def tables(found: Results) -> list[Table]:
    """All of the report, those that have a row."""
    parts = _parts(found)
    made = [
        accuracy(found),
        rlvr(found),
        everywhere(found),
        compute(found),
        ablations(found),
        *(other_part(found, part) for part in parts if part != found["claim_part"]),
        *(kinds(found, part) for part in parts),
        *(depths(found, part, family) for part in parts for family in _families(found, part)),
        noise(found),
        scaling(found),
    ]
    return [table for table in made if table is not None and table.rows and table.columns[1:]]


def overview(found: Results) -> Table:
    """For the terminal: means over seeds, everything at a glance."""
    part, hard = found["claim_part"], found["bin"]
    columns = [
        *_pair("hard", "parts", part, "bins", hard),
        _Column("hard, sampled", _at("parts", part, "bins", hard, _SAMPLED)),
        _Column("all, no thought", _at("parts", part, "gated", _DIRECT), 4),
        _Column("all, gated", _at("parts", part, "gated", "reported", _THOUGHT), 4),
        _Column("PFLOP", _at("compute", "flops_executed", scale=1e-15), 4),
        _Column("wall s", _at("compute", "wall_seconds"), 0),
    ]
    seeds = ", ".join(map(str, found["seeds"]))
    return _table(
        found, f"{found['split']}, {part}, mean over seeds {seeds}", columns, each_seed=False
    )


def accuracy(found: Results) -> Table:
    """Table 1 of the paper: nested bins, the same positions for all arms and both ways."""
    part = found["claim_part"]
    columns = []
    for name, bin in nested_bins(found):
        columns += _pair(name, "parts", part, "bins", bin)
        if bin == found["bin"]:
            columns.append(_Column(f"{name}, sampled", _at("parts", part, "bins", bin, _SAMPLED)))
    return _table(found, f"Next-token accuracy: {found['split']}, {part}", columns)


def nested_bins(found: Results) -> list[tuple[str, str]]:
    """(title, bin), easy first."""
    bins = [f">{limit}" for limit in found["bins_nats"]]
    names = ("easy", "medium", "hard") if len(bins) == 3 else [""] * len(bins)
    return [(f"{name} {bin} nats".strip(), bin) for name, bin in zip(names, bins, strict=True)]


def rlvr(found: Results) -> Table | None:
    """Table 2 of the paper: each arm before and after the same RLVR."""
    part = experiment_results.RLVR_PART
    rows = []
    for before, after in found["rlvr"]:
        cells = [found["arms"][before]["title"]]
        for arm in (before, after):
            entries = list(found["arms"][arm]["seeds"].values())
            cells += [c.cell(entries, True) for c in _pair("", "parts", part, "asked")]
        rows.append(cells)
    if not rows or part not in _parts(found):
        return None
    columns = ["arm", *(f"{when}, {how}" for when in ("before", "after") for how in _HOW)]
    return Table(f"RLVR: asked tokens of {found['split']}, {part}", columns, rows)


_HOW = ("no thought", "thought")


def everywhere(found: Results) -> Table:
    """All tokens, thinking only above the threshold that validation chose."""
    gated = ("parts", found["claim_part"], "gated")
    columns = [
        _Column("no thought", _at(*gated, _DIRECT), 4),
        _Column("gated", _at(*gated, "reported", _THOUGHT), 4),
        _Column("think", _at(*gated, "reported", "share", scale=100), 0, "%"),
        _Column(
            "thought tokens a token", _at(*gated, "reported", "thought_tokens_per_document_token")
        ),
        _Column(
            "MFLOP a token, no thought",
            _at("compute", "inference_flops_per_token", _DIRECT, scale=1e-6),
            1,
        ),
        _Column(
            "hard, thought", _at("compute", "inference_flops_per_token", "thought", scale=1e-6), 1
        ),
    ]
    return _table(
        found, f"Gated thinking on all tokens: {found['split']}, {found['claim_part']}", columns
    )


def compute(found: Results) -> Table:
    """The ledger's columns, with what an arm continues, and the arm alone."""
    columns = [
        _Column("TFLOP", _at("compute", "flops_executed", scale=1e-12), 2),
        _Column("alone", _at("compute", "flops_executed_alone", scale=1e-12), 2),
        _Column("TFLOP, rollouts as rows", _at("compute", "flops_as_rows", scale=1e-12), 2),
        _Column("wall s", _at("compute", "wall_seconds"), 0),
        _Column("alone", _at("compute", "wall_seconds_alone"), 0),
        _Column("document tokens", _at("compute", "document_tokens", scale=1e-6), 2, " M"),
        _Column("most epochs", _most_epochs, 2),
    ]
    return _table(found, "Training compute, with what each arm continues", columns)


def _most_epochs(entry: Mapping[str, Any]) -> float | None:
    """Of the source that was read most often, over all stages."""
    epochs: dict[str, float] = {}
    for stage in entry["compute"]["data"].values():
        streams = [stage, *(inner for inner in stage.values() if isinstance(inner, Mapping))]
        for name, value in (item for stream in streams for item in stream.items()):
            if name.startswith("epochs/"):
                epochs[name] = epochs.get(name, 0.0) + value
    return max(epochs.values(), default=None)


def ablations(found: Results) -> Table:
    """What remains of the accuracy at hard tokens when thoughts are altered."""
    where = ("parts", found["claim_part"], "bins", found["bin"])
    rows = [entry["parts"][found["claim_part"]]["bins"][found["bin"]] for entry in _entries(found)]
    names = dict.fromkeys(name for row in rows for name in (row or {}).get("ablations") or ())
    columns = [_Column(name, _at(*where, "ablations", name, "accuracy")) for name in names]
    if columns:
        direct = _Column("no thought", _at(*where, _DIRECT))
        columns = [direct, _Column("true thought", _at(*where, _THOUGHT)), *columns]
    return _table(
        found, f"Altered thoughts, hard tokens: {found['split']}, {found['claim_part']}", columns
    )


def other_part(found: Results, part: str) -> Table:
    where = ("parts", part)
    columns = [
        *_pair(f"hard {found['bin']} nats", *where, "bins", found["bin"]),
        *_pair("asked", *where, "asked"),
        _Column("every position, no thought", _at(*where, "every_position", "no_think_raw")),
        _Column("gated", _at(*where, "gated", "reported", _THOUGHT)),
        _Column("gated positions, no thought", _at(*where, "gated", _DIRECT)),
    ]
    title = "all parts" if part == evaluation.ALL else part
    return _table(found, f"Other text: {found['split']}, {title}", columns)


def kinds(found: Results, part: str) -> Table:
    """What the hard bin consists of."""
    names = list(dict.fromkeys(_of_all(found, part, "hard_by_kind")))
    if names == [experiment_results.UNLABELLED]:
        names = []
    columns = [c for name in names for c in _pair(name, "parts", part, "hard_by_kind", name)]
    title = f"Hard tokens by kind: {found['split']}, {part}"
    return _with_counts(_table(found, title, columns), found, part, "hard_by_kind", names)


def depths(found: Results, part: str, family: str) -> Table:
    """Labels of one family, such as answer/1, answer/2, at any entropy."""
    labels = [label for label in _labels(found, part) if label.rpartition("/")[0] == family]
    columns = [
        column
        for label in labels
        for column in _pair(label.rpartition("/")[2], "parts", part, "labels", label)
    ]
    title = f"By depth of {family}: {found['split']}, {part}"
    return _with_counts(_table(found, title, columns), found, part, "labels", labels)


def noise(found: Results) -> Table:
    """The leak check: nothing can predict noise, and a thought may even keep from guessing."""
    check = ("parts", evaluation.ALL, "leak_check", "sigmas_above_guess")
    modes = ("no_think_raw", "no_think_header", _THOUGHT, _SAMPLED)
    columns = [_Column(mode.replace("_", " "), _at(*check, mode), 1) for mode in modes]
    if not any(_leak_checked(entry) for entry in _entries(found)):
        columns = []
    return _table(found, "Noise: accuracy less a constant guess's, in sigma", columns)


def _leak_checked(entry: Mapping[str, Any]) -> bool:
    return entry["parts"][evaluation.ALL]["leak_check"] is not None


def scaling(found: Results) -> Table:
    """The points of the scaling curves."""
    rows = [
        [
            curve,
            found["arms"][point["arm"]]["title"],
            str(point["seed"]),
            f"{point['flops'] / 1e12:.3f}",
            f"{point['flops_after_stage0'] / 1e12:.3f}",
            *(
                _MISSING if point["value"] is None else f"{point['value'][mode]['mean']:.3f}"
                for mode in (_DIRECT, _THOUGHT)
            ),
        ]
        for curve, points in found["scaling"].items()
        for point in points
    ]
    columns = ("curve", "arm", "seed", "TFLOP", "after stage 0", "hard, no thought", "thought")
    return Table("Scaling points", columns, rows)


# ---- what there is -------------------------------------------------------------------------------


def _entries(found: Results) -> list[Mapping[str, Any]]:
    return [entry for arm in found["arms"].values() for entry in arm["seeds"].values()]


def _parts(found: Results) -> list[str]:
    """The claim's part first, all parts together last."""
    names = dict.fromkeys(name for entry in _entries(found) for name in entry["parts"])
    return sorted(names, key=lambda n: (n != found["claim_part"], n == evaluation.ALL))


def _of_all(found: Results, part: str, what: str) -> list[str]:
    """Keys of `what` in any arm and seed."""
    return [
        name for entry in _entries(found) if part in entry["parts"]
        for name in entry["parts"][part][what]
    ]  # fmt: skip


def _labels(found: Results, part: str) -> list[str]:
    """'answer/10' behind 'answer/9'."""
    names = set(_of_all(found, part, "labels"))
    return sorted(names, key=lambda n: [int(w) if w.isdigit() else w for w in _pieces(n)])


def _pieces(label: str) -> list[str]:
    """Words and numbers by turns, so that equal places hold equal kinds."""
    return re.split(r"(\d+)", label)


def _families(found: Results, part: str) -> list[str]:
    """Those with a depth; all parts together have nothing that a part has not."""
    if part == evaluation.ALL:
        return []
    names = (label.rpartition("/")[0] for label in _labels(found, part))
    return list(dict.fromkeys(filter(None, names)))


def _with_counts(table: Table, found: Results, part: str, what: str, names: Sequence[str]) -> Table:
    """Both columns of a name as one, and a last row with the positions of each."""
    rows = [
        [row[0], *(f"{direct} / {thought}" for direct, thought in zip(row[1::2], row[2::2]))]
        for row in table.rows
    ]
    arm = next(iter(found["arms"].values()))
    entries = list(arm["seeds"].values())
    counts = [_Column(n, _at("parts", part, what, n, "n"), 0).cell(entries, True) for n in names]
    title = f"{table.title}, {_PAIR}"
    return Table(
        title, ["arm", *(name.rpartition("/")[2] for name in names)], [*rows, ["n", *counts]]
    )
