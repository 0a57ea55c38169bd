"""From names in a config to the things themselves: sources, tokenizer, model, parameters."""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from data import generated, joined, pipeline, sources, tokenizers, tokenizers_huggingface
from rpt import checkpoint, config, fetch, sharding, weights
from rpt.model import config as model_config
from rpt.model import transformer

SPECIAL_TOKENS = ("<bos>", "<eos>", "<think>", "</think>")


_init = jax.jit(transformer.init, static_argnums=0)


class Loaded(NamedTuple):
    """A model ready to run; `experiment` is the config.json of its run, {} without one."""

    model: model_config.ModelConfig
    params: Any
    tokenizer: tokenizers.Tokenizer
    experiment: dict[str, Any]


def open_mixture(mixture: config.Mixture) -> list[pipeline.Mix]:
    """The sources of a mixture.

    Raises:
      ValueError: there is none, or one cannot be opened.
    """
    if not mixture:
        raise ValueError("the config names no text: set a mixture of (name, spec, weight)")
    return [sources.open_mix(part.spec, part.weight, part.name) for part in mixture]


def own_shards(settings: config.DataConfig, batch_size: int, hosts_count: int) -> range:
    """The shards of every stream that are this host's to read.

    Raises:
      ValueError: the shards do not divide the batch, or the hosts do not divide the shards.
    """
    if settings.shards < 1 or batch_size % settings.shards:
        raise ValueError(
            f"config.data.shards={settings.shards} does not divide a batch of {batch_size} rows; "
            "each shard gives as many rows as the others"
        )
    if settings.shards % hosts_count:
        raise ValueError(
            f"config.data.shards={settings.shards} cannot be dealt to {hosts_count} hosts, each of "
            f"which reads its own: set it to a multiple of {hosts_count} that divides the batch of "
            f"{batch_size} rows"
        )
    return sharding.own_block(settings.shards)


def restore_stream(stream: joined.Joined[Any], states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Continues a stream; returns a line for the log where the config has other weights now.

    Args:
      stream: this host's shards.
      states: of all shards.

    Raises:
      ValueError: the states are not of such a stream.
    """
    stream.set_states(states)
    (_, before), (draws, now) = states[0]["mixture"]["events"][-1], stream.events[-1]
    changes = [f"{name} {before[name]:g} -> {now[name]:g}" for name in now if before != now]
    return [f"mixture weights after {draws} windows: {', '.join(changes)}"] if changes else []


def start(experiment: config.Config) -> Loaded:
    """What `data.weights`, `data.tokenizer` and `model` describe."""
    data = experiment.data
    if not data.weights:
        if experiment.model is None:
            raise ValueError("set config.model, or config.data.weights to start from a checkpoint")
        model = experiment.model
        params = _init(model, jax.random.key(experiment.seed))
    else:
        model, params = weights.load(str(weights_path(data.weights)))
        model = dataclasses.replace(model, dtype=data.dtype, remat=data.remat)
    tokenizer = own_tokenizer(data)
    weights.check_vocabulary(model, tokenizer)
    return Loaded(model, params, tokenizer, {})


def weights_path(name: str) -> pathlib.Path:
    """A path, or what `python -m rpt.fetch NAME` has fetched for 'fetch:NAME'."""
    kind, _, rest = name.partition(":")
    return fetch.path(rest) if kind == "fetch" else pathlib.Path(name)


def own_tokenizer(data: config.DataConfig) -> tokenizers.Tokenizer:
    """What `data.tokenizer` names; 'weights' is the one beside `data.weights`."""
    beside = data.weights and data.tokenizer == "weights"
    return load_tokenizer(str(weights_path(data.weights)) if beside else data.tokenizer)


def load_tokenizer(name: str) -> tokenizers.Tokenizer:
    kind, _, size = name.partition(":")
    if kind == "miniature":
        return miniature_tokenizer(int(size))
    return tokenizers.load(name)


@functools.cache
def miniature_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE with one leading-space token per story word, and English pieces."""
    english = sources.open_source("pydoc:?split=train")
    texts = (english[i].text for i in range(len(english)))
    return tokenizers_huggingface.train_bpe(
        itertools.chain(generated.tokenizer_texts(), texts), vocab_size, SPECIAL_TOKENS
    )


def load_run(workdir: pathlib.Path, step: int | None = None) -> Loaded:
    """Model, parameters, tokenizer and config of a run directory; the template is the run's copy.

    Raises:
      FileNotFoundError: no run, or no such checkpoint.
    """
    path = workdir / "model.json"
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} is no run directory: it has no model.json")
    model = config.model_from_json(json.loads(path.read_text()))
    params = checkpoint.load_params(workdir, _shapes(model), step)
    tokenizer = tokenizers.load(str(workdir / "tokenizer"))
    experiment = json.loads((workdir / "config.json").read_text())
    if (workdir / "template.txt").is_file():
        experiment["data"]["template"] = str(workdir / "template.txt")
    return Loaded(model, params, tokenizer, experiment)


def load_any(path: str, step: int | None = None) -> Loaded:
    """A run directory, a Hugging Face folder, a GGUF file, or 'fetch:NAME'."""
    if (pathlib.Path(path) / "model.json").is_file():
        return load_run(pathlib.Path(path), step)
    found = weights_path(path)
    if not found.exists():
        raise FileNotFoundError(f"{path}: neither a run directory nor a checkpoint")
    model, params = weights.load(str(found))
    tokenizer = tokenizers.load(str(found))
    weights.check_vocabulary(model, tokenizer)
    return Loaded(model, params, tokenizer, {})


def place(mesh: Mesh, model: model_config.ModelConfig, params: Any) -> Any:
    """Parameters in the training layout of the mesh."""
    axes = transformer.logical_axes(model)
    return sharding.place(params, sharding.parameter_shardings(mesh, axes, _shapes(model)))


@functools.cache
def _shapes(model: model_config.ModelConfig) -> Any:
    return jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))


def header_ids(tokenizer: tokenizers.Tokenizer, header: str, add_bos: bool) -> np.ndarray:
    """What stands before every document in its row: bos, if wanted, and the template's header."""
    bos = [tokenizer.bos_id] if add_bos and tokenizer.bos_id is not None else []
    return np.concatenate([np.array(bos, np.int32), tokenizer.encode_markup(header)])
