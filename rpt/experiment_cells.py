"""Tables as data, and the cells of an arm: its mean over seeds, the interval, and each seed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MISSING = "-"

Arm = Mapping[str, Any]
# From the entry of an arm and seed to a number, or to an estimate (mean, low, high); None where it
# was not measured.
Getter = Callable[[Mapping[str, Any]], Any]


class Cell(NamedTuple):
    """A figure, and behind it each seed's, where there are several."""

    text: str
    each: str = ""


class Head(NamedTuple):
    """The name of a column, and what it means where the name does not say it."""

    name: str
    what: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, the heads of its columns, and the cells of its rows, the first of which names it."""

    title: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> list[str]:
        """Explanations of columns stand below; a cell's seeds stand on a line of their own."""
        lines = [[head.name for head in self.heads], ["---"] * len(self.heads)]
        lines += [
            [f"{text}<br>{each}" if each else text for text, each in row] for row in self.rows
        ]
        explained = [f"{head.name}: {head.what}" for head in self.heads if head.what]
        return [
            *("| " + " | ".join(line) + " |" for line in lines),
            *(["", "; ".join(explained) + "."] if explained else []),
        ]


@dataclasses.dataclass(frozen=True)
class Column:
    """How an arm's cell of a column is made.

    Attributes:
      head: see there.
      get: of each seed.
      pooled: of the arm, the estimate over its seeds; None where nothing is pooled.
      digits, unit: of the number; of a seed's beside others at most two digits, which tell seeds
        apart well enough.
    """

    head: Head
    get: Getter
    pooled: Getter | None = None
    digits: int = 3
    unit: str = ""

    def cell(self, arm: Arm) -> Cell:
        """With an interval, where one is pooled or the only seed has one."""
        found = [value for entry in arm["seeds"].values() if (value := self.get(entry)) is not None]
        if not found:
            return Cell(MISSING)
        means = [_mean(value) for value in found]
        pooled = self.pooled(arm) if self.pooled else found[0] if len(found) == 1 else None
        text = f"{sum(means) / len(means):.{self.digits}f}{self.unit}"
        if isinstance(pooled, Mapping):
            text = interval(pooled, self.digits)
        if len(arm["seeds"]) == 1:
            return Cell(text)
        return Cell(text, ", ".join(f"{mean:.{min(self.digits, 2)}f}" for mean in means))


def _mean(value: Any) -> float:
    return value["mean"] if isinstance(value, Mapping) else value


def interval(value: Mapping[str, Any], digits: int) -> str:
    """0.612 [0.590, 0.634]; the mean alone where nothing is known of other documents."""
    if value["low"] is None or value["high"] is None:
        return f"{value['mean']:.{digits}f}"
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def at(*path: str, scale: float = 1.0) -> Getter:
    """The number or estimate at a path of an entry; only numbers are scaled."""

    def get(entry: Mapping[str, Any]) -> Any:
        value: Any = entry
        for name in path:
            value = None if value is None else value.get(name)
        return value if value is None or scale == 1.0 else value * scale

    return get


def by_arm(title: str, columns: Sequence[Column], arms: Sequence[Arm]) -> Table:
    """A row per arm."""
    rows = [[Cell(arm["title"]), *(column.cell(arm) for column in columns)] for arm in arms]
    return Table(title, [Head("arm"), *(column.head for column in columns)], rows)
