"""JSON-like values as typed ones: frozen dataclasses and what their fields are annotated with.

Sections of a config are dictionaries, or lists in the order of the fields.
"""

import dataclasses
import types
import typing
from typing import Any, Literal


def build(kind: Any, value: Any, path: str) -> Any:
    """`value` as an instance of the annotation `kind`.

    Raises:
      ValueError: an unknown field, a wrong type or a refused value; `path` begins its name.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _build_union([a for a in args if a is not type(None)], value, path)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{path} must be a sequence, not {value!r}")
        return tuple(build(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{path} must be one of {', '.join(map(repr, args))}, not {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{path} must be of type {kind.__name__}, not {value!r}")
    return value


def _build_union(kinds: list[Any], value: Any, path: str) -> Any:
    """The first member that accepts the value; dataclasses are told apart by their fields."""
    errors = []
    for kind in kinds:
        try:
            return build(kind, value, path)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError(errors[0])


def _build_dataclass(kind: Any, value: Any, path: str) -> Any:
    if isinstance(value, list | tuple):
        names = [field.name for field in dataclasses.fields(kind)]
        value = dict(zip(names, value, strict=False))
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a section, not {value!r}")
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise ValueError(f"{path}.{name} is no field; known are {', '.join(hints)}")
    fields = {name: build(hints[name], v, f"{path}.{name}") for name, v in value.items()}
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
