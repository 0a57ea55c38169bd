"""The tables of an experiment's report, for people: pure functions of results.json.

A cell is the mean over seeds, with its 95% interval where one is pooled, and with several seeds
each of them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rpt import evaluation, experiment_pooled, experiment_results
from rpt import experiment_cells as cells

_DIRECT, _THOUGHT, _SAMPLED = "no_think", "thought_argmax", "thought_sample"
_BOTH = ((_DIRECT, "no thought"), (_THOUGHT, "thought"))
# What every table of a report is to be read by.
READING = (
    "Means over seeds; in brackets the 95% interval of that mean, over the documents of these "
    "seeds; below, each seed by itself."
)

Results = Mapping[str, Any]
_at = cells.at


def _title(found: Results, what: str, part: str) -> str:
    """With what was read: the split, and the part of its text."""
    return f"{what}: {found['split']}, {'all parts' if part == evaluation.ALL else part}"


def _arms(found: Results) -> list[Mapping[str, Any]]:
    return list(found["arms"].values())


def _pooled(part: str, *path: str) -> cells.Getter:
    """The estimate over an arm's seeds."""
    return _at("pooled", part, *path)


def _pair(name: str, part: str, *path: str, digits: int = 3) -> list[cells.Column]:
    """Without and with a thought, both pooled."""
    return [
        cells.Column(
            cells.Head(f"{name}, {words}".lstrip(", ")),
            _at("parts", part, *path, mode),
            _pooled(part, *path, mode),
            digits,
        )
        for mode, words in _BOTH
    ]


# ---- the tables ----------------------------------------------------------------------------------


def tables(found: Results) -> list[cells.Table]:
    """All of the report, those that have a row."""
    parts = _parts(found)
    made = [
        accuracy(found),
        rlvr(found),
        everywhere(found),
        compute(found),
        ablations(found),
        *(other_part(found, part) for part in parts if part != found["claim_part"]),
        *(depths(found, part, family) for part in parts for family in _families(found, part)),
        *(kinds(found, part) for part in parts),
        noise(found),
    ]
    return [table for table in made if table is not None and table.rows and table.heads[1:]]


def overview(found: Results) -> cells.Table:
    """For the terminal: means over seeds, everything at a glance."""
    part, hard = found["claim_part"], ("bins", found["bin"])
    columns = [
        *(
            cells.Column(cells.Head(f"hard, {words}"), _at("parts", part, *hard, m))
            for m, words in _BOTH
        ),
        cells.Column(cells.Head("hard, sampled"), _at("parts", part, *hard, _SAMPLED)),
        cells.Column(cells.Head("all, no thought"), _at("parts", part, "gated", _DIRECT), digits=4),
        cells.Column(
            cells.Head("all, gated"), _at("parts", part, "gated", "reported", _THOUGHT), digits=4
        ),
        cells.Column(cells.Head("PFLOP"), _at("compute", "flops_executed", scale=1e-15), digits=4),
        cells.Column(cells.Head("wall s"), _at("compute", "wall_seconds"), digits=0),
    ]
    seeds = ", ".join(map(str, found["seeds"]))
    title = _title(found, f"Means over seeds {seeds}", part)
    return cells.by_arm(title, columns, _arms(found))


def accuracy(found: Results) -> cells.Table:
    """Table 1 of the paper: nested bins, the same positions for all arms and both ways."""
    part, columns = found["claim_part"], []
    for name, bin in [*nested_bins(found), ("all", evaluation.ALL)]:
        columns += _pair(name, part, "bins", bin)
        if bin == found["bin"]:
            sampled, at = (
                cells.Head(f"{name}, sampled", "the answer sampled, too"),
                ("bins", bin, _SAMPLED),
            )
            columns.append(cells.Column(sampled, _at("parts", part, *at), _pooled(part, *at)))
    title = _title(found, "Next-token accuracy", part)
    return cells.by_arm(title, columns, _arms(found))


def nested_bins(found: Results) -> list[tuple[str, str]]:
    """(title, bin), easy first."""
    bins = [f">{limit}" for limit in found["bins_nats"]]
    names = ("easy", "medium", "hard") if len(bins) == 3 else [""] * len(bins)
    return [(f"{name} {bin} nats".strip(), bin) for name, bin in zip(names, bins, strict=True)]


def rlvr(found: Results) -> cells.Table | None:
    """Table 2 of the paper: each arm before and after RLVR on a task that it had not met."""
    part = experiment_results.RLVR_PART
    if part not in _parts(found):
        return None
    columns = _pair("", part, "asked")
    executed = cells.Column(cells.Head(""), _at("compute", "flops_executed", scale=1e-12), digits=2)
    rows = [
        [
            cells.Cell(found["arms"][after]["title"]),
            *(column.cell(found["arms"][arm]) for arm in (before, after) for column in columns),
            executed.cell(found["arms"][after]),
        ]
        for before, after in found["rlvr"]
    ]
    heads = [cells.Head(f"{when}, {words}") for when in ("before", "after") for _, words in _BOTH]
    spent = cells.Head("TFLOP", "training compute, with all that the arm continues")
    return cells.Table(
        _title(found, "RLVR, asked tokens", part), [cells.Head("arm"), *heads, spent], rows
    )


def everywhere(found: Results) -> cells.Table:
    """All tokens, thinking only above the threshold that validation chose."""
    part = found["claim_part"]
    gated, cost = ("parts", part, "gated"), ("compute", "inference_flops_per_token")
    spent = _at(*gated, "reported", "thought_tokens_per_document_token")
    columns = [
        cells.Column(
            cells.Head("no thought"), _at(*gated, _DIRECT), _pooled(part, "gated", _DIRECT), 4
        ),
        cells.Column(
            cells.Head("gated", "thinking above the threshold that validation chose"),
            _at(*gated, "reported", _THOUGHT),
            _pooled(part, "gated", _THOUGHT),
            4,
        ),
        cells.Column(
            cells.Head("think"), _at(*gated, "reported", "share", scale=100), digits=0, unit="%"
        ),
        cells.Column(cells.Head("thought tokens a token"), spent),
        cells.Column(
            cells.Head("MFLOP a token, no thought"), _at(*cost, _DIRECT, scale=1e-6), digits=1
        ),
        cells.Column(cells.Head("hard, thought"), _at(*cost, "thought", scale=1e-6), digits=1),
    ]
    title = _title(found, "Gated thinking on all tokens", part)
    return cells.by_arm(title, columns, _arms(found))


def compute(found: Results) -> cells.Table:
    """The ledger's columns, with what an arm continues, and the arm alone."""
    at, tera = "compute", 1e-12
    alone = "alone", "without what the arm continues"
    columns = [
        cells.Column(cells.Head("TFLOP"), _at(at, "flops_executed", scale=tera), digits=2),
        cells.Column(cells.Head(*alone), _at(at, "flops_executed_alone", scale=tera), digits=2),
        cells.Column(
            cells.Head("TFLOP, rollouts as rows"), _at(at, "flops_as_rows", scale=tera), digits=2
        ),
        cells.Column(cells.Head("wall s"), _at(at, "wall_seconds"), digits=0),
        cells.Column(cells.Head(alone[0]), _at(at, "wall_seconds_alone"), digits=0),
        cells.Column(
            cells.Head("document tokens"),
            _at(at, "document_tokens", scale=1e-6),
            digits=2,
            unit=" M",
        ),
        cells.Column(
            cells.Head("most epochs", "of the source that was read most often"),
            _most_epochs,
            None,
            2,
        ),
    ]
    title = "Training compute, with what each arm continues"
    return cells.by_arm(title, columns, _arms(found))


def _most_epochs(entry: Mapping[str, Any]) -> float | None:
    """Over all stages."""
    total: dict[str, float] = {}
    for stage in entry["compute"]["data"].values():
        for source, epochs in experiment_results.epochs(stage).items():
            total[source] = total.get(source, 0.0) + epochs
    return max(total.values(), default=None)


def ablations(found: Results) -> cells.Table:
    """What remains of the accuracy at hard tokens when thoughts are altered."""
    part, hard = found["claim_part"], ("bins", found["bin"])
    rows = [entry["parts"][part]["bins"][found["bin"]] for entry in _entries(found)]
    names = dict.fromkeys(name for row in rows for name in (row or {}).get("ablations") or ())
    where = ("parts", part, *hard)
    columns = [cells.Column(cells.Head(n), _at(*where, "ablations", n, "accuracy")) for n in names]
    if columns:
        direct = cells.Column(
            cells.Head("no thought"), _at(*where, _DIRECT), _pooled(part, *hard, _DIRECT)
        )
        true = cells.Column(
            cells.Head("true thought"), _at(*where, _THOUGHT), _pooled(part, *hard, _THOUGHT)
        )
        columns = [direct, true, *columns]
    title = _title(found, "Altered thoughts, hard tokens", part)
    return cells.by_arm(title, columns, _arms(found))


def other_part(found: Results, part: str) -> cells.Table:
    gated = ("parts", part, "gated")
    every = _at("parts", part, "every_position", "no_think_raw")
    columns = [
        *_pair(f"hard {found['bin']} nats", part, "bins", found["bin"]),
        *_pair("asked", part, "asked"),
        cells.Column(cells.Head("every position, no thought"), every),
        cells.Column(
            cells.Head("gated"), _at(*gated, "reported", _THOUGHT), _pooled(part, "gated", _THOUGHT)
        ),
        cells.Column(
            cells.Head("gated positions, no thought"),
            _at(*gated, _DIRECT),
            _pooled(part, "gated", _DIRECT),
        ),
    ]
    return cells.by_arm(_title(found, "Other text", part), columns, _arms(found))


def kinds(found: Results, part: str) -> cells.Table:
    """What the hard bin consists of."""
    names = list(dict.fromkeys(_of_all(found, part, "hard_by_kind")))
    if names == [experiment_results.UNLABELLED]:
        names = []
    where = ("parts", part, "hard_by_kind")
    return _by_mode(
        found,
        _title(found, "Hard tokens by kind", part),
        lambda mode: [cells.Column(cells.Head(name), _at(*where, name, mode)) for name in names],
        [cells.Column(cells.Head(name), _at(*where, name, "n"), digits=0) for name in names],
    )


def depths(found: Results, part: str, family: str) -> cells.Table:
    """Labels of one family, such as answer/1, answer/2, at any entropy.

    First those that stage 0 shows worked thoughts of, and those above, if the plan says which.
    """
    labels = [label for label in _labels(found, part) if _family(label) == family]
    shown = found["shown_depth"]
    words = (f"stage 0 shows worked thoughts up to depth {shown}, of what it trains on", "")
    groups = experiment_pooled.depth_groups(shown)

    def columns(mode: str) -> list[cells.Column]:
        grouped = [
            cells.Column(
                cells.Head(name, what),
                _of_labels(part, _within(labels, chosen), mode),
                _pooled(part, "depths", family, name, mode),
                2,
            )
            for (name, chosen), what in zip(groups.items(), words)
        ]
        return grouped + [
            cells.Column(
                cells.Head(label.rpartition("/")[2]),
                _at("parts", part, "labels", label, mode),
                _pooled(part, "labels", label, mode),
                2,
            )
            for label in labels
        ]

    sizes = [_within(labels, chosen) for chosen in groups.values()] + [[n] for n in labels]
    counts = [
        cells.Column(cells.Head(""), _of_labels(part, chosen, "n"), digits=0) for chosen in sizes
    ]
    return _by_mode(found, _title(found, f"By depth of {family}", part), columns, counts)


def _within(labels: Sequence[str], depths: range) -> list[str]:
    found = [(label, experiment_pooled.depth_of(label)) for label in labels]
    return [label for label, depth in found if depth is not None and depth[1] in depths]


def _of_labels(part: str, labels: Sequence[str], name: str) -> cells.Getter:
    """Their positions (n), or a mean over these, of one seed."""

    def get(entry: Mapping[str, Any]) -> float | None:
        known = entry["parts"].get(part, {}).get("labels", {})
        rows = [known[label] for label in labels if label in known]
        n = sum(row["n"] for row in rows)
        if not n:
            return None
        return n if name == "n" else sum(row["n"] * row[name] for row in rows) / n

    return get


def noise(found: Results) -> cells.Table:
    """The leak check: nothing can predict noise, and a thought may even keep from guessing."""
    check = ("parts", evaluation.ALL, "leak_check", "sigmas_above_guess")
    modes = ("no_think_raw", "no_think_header", _THOUGHT, _SAMPLED)
    columns = [
        cells.Column(cells.Head(mode.replace("_", " ")), _at(*check, mode), digits=1)
        for mode in modes
    ]
    if not any(entry["parts"][evaluation.ALL]["leak_check"] for entry in _entries(found)):
        columns = []
    title = "Noise: accuracy less a constant guess's, in sigma"
    return cells.by_arm(title, columns, _arms(found))


# ---- what there is -------------------------------------------------------------------------------


def _entries(found: Results) -> list[Mapping[str, Any]]:
    return [entry for arm in _arms(found) for entry in arm["seeds"].values()]


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


def _family(label: str) -> str:
    return label.rpartition("/")[0]


def _families(found: Results, part: str) -> list[str]:
    """Those with a depth; all parts together have nothing that a part has not."""
    if part == evaluation.ALL:
        return []
    return list(dict.fromkeys(filter(None, map(_family, _labels(found, part)))))


def _by_mode(
    found: Results,
    title: str,
    columns: Callable[[str], Sequence[cells.Column]],
    counts: Sequence[cells.Column],
) -> cells.Table:
    """Two rows per arm, without and with a thought, and a last one with the positions."""
    rows = [
        [cells.Cell(f"{arm['title']}, {words}"), *(column.cell(arm) for column in columns(mode))]
        for arm in _arms(found)
        for mode, words in _BOTH
    ]
    # All arms are measured at the same positions.
    rows.append([cells.Cell("n"), *(column.cell(_arms(found)[0]) for column in counts)])
    return cells.Table(
        title, [cells.Head("arm"), *(column.head for column in columns(_DIRECT))], rows
    )
