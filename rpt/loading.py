"""From names in a config to the things themselves: sources, tokenizer, model, parameters.

A path may be of this machine or of a bucket (gs://...).
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from data import cache, generated, joined, pipeline, sources, tokenizers, tokenizers_huggingface
from rpt import checkpoint, config, fetch, files, hosts, sharding, weights
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


class Begun(NamedTuple):
    """What a training run begins or goes on with.

    `init_params_sha256` is the digest of what another run gave it, '' if none did, and None where
    it goes on from its own checkpoint.
    """

    model: model_config.ModelConfig
    params: Any
    tokenizer: tokenizers.Tokenizer
    init_params_sha256: str | None


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


def begin(
    experiment: config.Config,
    workdir: pathlib.Path,
    init: pathlib.Path | None = None,
    team: hosts.Hosts = hosts.ALONE,
) -> Begun:
    """What a training run begins or goes on with.

    A run directory with a checkpoint has everything: what the run began with may be gone, as on a
    TPU that was replaced. The parameters are zeros then, for the checkpoint to take their place.

    Args:
      experiment: the config; its data and model where there is neither checkpoint nor init.
      workdir: of the run.
      init: another run to take parameters and tokenizer from.
      team: the hosts, which all do what the first one sees.

    Raises:
      FileNotFoundError: something that is needed is not there.
      ValueError: it is not what it should be.
    """
    saved = team.is_first and _has_checkpoint(workdir)
    if not team.from_first(saved):
        found = load_run(init) if init is not None else start(experiment)
        digest = checkpoint.params_sha256(found.params) if init is not None else ""
        return Begun(*found[:3], digest)
    model = _model_of(workdir)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), _shapes(model))
    return Begun(model, zeros, _tokenizer_of(workdir), None)


def _has_checkpoint(workdir: pathlib.Path) -> bool:
    return (workdir / "model.json").is_file() and bool(checkpoint.steps(workdir / "checkpoints"))


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
    return fetch.path(rest) if kind == "fetch" else _local(name)


def _local(name: str) -> pathlib.Path:
    """On this machine: what lies in a bucket is copied into the cache, once for every version."""
    return cache.fetch(name) if cache.is_remote(name) else pathlib.Path(name)


def own_tokenizer(data: config.DataConfig) -> tokenizers.Tokenizer:
    """What `data.tokenizer` names; 'weights' is the one beside `data.weights`."""
    beside = data.weights and data.tokenizer == "weights"
    return load_tokenizer(str(weights_path(data.weights)) if beside else data.tokenizer)


def load_tokenizer(name: str) -> tokenizers.Tokenizer:
    kind, _, size = name.partition(":")
    if kind == "miniature":
        return miniature_tokenizer(int(size))
    return tokenizers.load(_local(name))


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
    model = _model_of(workdir)
    params = checkpoint.load_params(workdir, _shapes(model), step)
    tokenizer = _tokenizer_of(workdir)
    experiment = json.loads((workdir / "config.json").read_text())
    if (workdir / "template.txt").is_file():
        experiment["data"]["template"] = str(_local(os.fspath(workdir / "template.txt")))
    return Loaded(model, params, tokenizer, experiment)


def _model_of(workdir: pathlib.Path) -> model_config.ModelConfig:
    path = workdir / "model.json"
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} is no run directory: it has no model.json")
    return config.model_from_json(json.loads(path.read_text()))


def _tokenizer_of(workdir: pathlib.Path) -> tokenizers.Tokenizer:
    return tokenizers.load(_local(os.fspath(workdir / "tokenizer")))


def load_any(path: str, step: int | None = None) -> Loaded:
    """A run directory, a Hugging Face folder, a GGUF file, or 'fetch:NAME'."""
    run = files.folder(path)
    if (run / "model.json").is_file():
        return load_run(run, step)
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
