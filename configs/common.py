"""Pieces that several experiments share."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rpt import config as config_lib
from rpt.model import config as model_config

TEMPLATES = pathlib.Path(__file__).parent / "templates"


def base() -> ConfigDict:
    """Every field of an experiment at its default, so that each can be overridden."""
    return ConfigDict(dataclasses.asdict(config_lib.Config()))


def model(**fields) -> ConfigDict:
    """A model section with every field, the given ones set."""
    return ConfigDict(dataclasses.asdict(model_config.ModelConfig(**fields)))


def template(name: str) -> str:
    """The path of a template that comes with the project."""
    return str(TEMPLATES / f"{name}.txt")


def miniature_model(vocab_size: int) -> ConfigDict:
    """Too shallow to follow a long chain in one forward pass: half a million parameters."""
    return model(
        vocab_size=vocab_size,
        width=128,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        head_width=32,
        ff_width=256,
        rope_theta=1000.0,
    )


def miniature_stage0_optimizer(optimizer: ConfigDict) -> None:
    """Of stage 0: Muon for the matrices, Adam for the rest."""
    optimizer.kind = "muon"
    optimizer.learning_rate = 2e-3
    optimizer.muon_learning_rate = 1e-2
    optimizer.warmup_steps = 50
    optimizer.decay_steps = 350


def arm(name: str, title: str, command: str, changes: Mapping[str, Any] | None = None, **fields):
    """An arm of an experiment; `changes` are values, or whole sections, by dotted path."""
    pairs = tuple(
        (path, value.to_dict() if isinstance(value, ConfigDict) else value)
        for path, value in (changes or {}).items()
    )
    return {"name": name, "title": title, "command": command, "changes": pairs, **fields}


def claim(a: str, mode_a: str, b: str, mode_b: str, part: str, **fields):
    """A claim of an experiment, that arm `a` is above `b`, under a name made of both."""
    arms = {"a": a, "mode_a": mode_a, "b": b, "mode_b": mode_b}
    return {"name": f"{a}_{mode_a}_over_{b}_{mode_b}", **arms, "part": part, **fields}


def parse_arg(arg: str, **defaults):
    """The typed switches of `--config=file.py:name=value,flag`, closed: an unknown one is an error.

    A bare name sets a boolean to True.
    """
    values = dict(defaults)
    for item in filter(None, arg.split(",")):
        name, given, text = item.partition("=")
        if name not in defaults:
            known = ", ".join(defaults)
            raise ValueError(f"unknown switch {name!r} behind the config's name; known are {known}")
        kind = type(defaults[name])
        if kind is bool:
            values[name] = not given or text.lower() in ("1", "true")
        else:
            values[name] = kind(text)
    return ConfigDict(values)
