"""The text of a record with named fields: one field, or several joined."""

import dataclasses
import json
from collections.abc import Mapping

from data import records


@dataclasses.dataclass(frozen=True)
class Fields:
    """Options `field=problem,solution` and `join` (an empty line) of a spec."""

    names: tuple[str, ...]
    join: str = "\n\n"

    def text_of(self, values: Mapping[str, object], where: str) -> str:
        """Joins the fields' texts; bytes are read as UTF-8.

        Raises:
            records.Fault: a field is missing or no text.
        """
        return self.join.join(self._one(values, name, where) for name in self.names)

    def text_of_json(self, raw: bytes, where: str) -> str:
        """The same of one JSON object in UTF-8; a byte order mark may stand before it.

        Raises:
            records.Fault: it is not UTF-8, not JSON, or lacks a field.
        """
        text = decoded(raw, where).removeprefix("\ufeff")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise records.Fault("not_json", where, f"is not JSON: {error}") from error
        return checked(self.text_of(value if isinstance(value, dict) else {}, where), where)

    def _one(self, values: Mapping[str, object], name: str, where: str) -> str:
        value = values.get(name)
        if isinstance(value, bytes):
            return decoded(value, where)
        if not isinstance(value, str):
            known = ", ".join(map(str, values)) or "none"
            raise records.Fault(
                "missing_field",
                where,
                f"has no string field {name!r} (fields: {known}); set field=...",
            )
        return value


def take(options: dict[str, str], default: str = "text") -> Fields:
    """Takes the options away.

    Raises:
        ValueError: an empty name.
    """
    names = tuple(options.pop("field", default).split(","))
    if not all(names):
        raise ValueError(f"field={','.join(names)!r} names an empty field")
    return Fields(names, options.pop("join", "\n\n"))


def decoded(raw: bytes, where: str) -> str:
    """UTF-8 to text.

    Raises:
        records.Fault: it is not UTF-8; says where.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise records.Fault(
            "invalid_utf8",
            where,
            f"is not UTF-8 text: {error.reason} at byte {error.start}; convert it first",
        ) from error


def checked(text: str, where: str) -> str:
    """The same text.

    Raises:
        records.Fault: it cannot be written as UTF-8 (half of a surrogate pair, from a JSON escape).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise records.Fault(
            "invalid_utf8", where, f"holds half a surrogate pair at character {error.start}"
        ) from error
    return text
