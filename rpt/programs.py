"""The programs of one training step, compiled for a mesh without being run.

    compiled = programs.compile_step(config, model, tables, mesh)
    compiled["decode"].memory_analysis(), compiled["decode"].as_text()

Every program is the very function that `rpt.train` calls, given shapes in place of arrays: each one
takes the shapes and shardings that the one before it returns. For a mesh of `rpt.topologies` this
is what a TPU would run.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rpt import branch_cache, formats, optimizers, phases, rollout, scoring, sharding, update
from rpt import config as config_lib
from rpt.model import config as model_config
from rpt.model import decoding, transformer

CompiledOne = Callable[[str, jax.stages.Compiled, float], None]


def compile_step(
    config: config_lib.Config,
    model: model_config.ModelConfig,
    tables: phases.Tables,
    mesh: Mesh,
    *,
    branch_length: int | None = None,
    compiled_one: CompiledOne = lambda name, compiled, seconds: None,
) -> dict[str, jax.stages.Compiled]:
    """Scoring, rollout and update of one step, in the order in which they run.

    Args:
      config: sections train, positions, rollout, objective.
      model: static model shape.
      tables: of `phases.make_tables`, or `table_shapes`.
      mesh: of real or described devices.
      branch_length: T of the update's micro-batch; that of the longest branch by default.
      compiled_one: called with every program's name, itself, and the seconds it took to compile.

    Returns:
      compiled programs: score, sampling_copy, prepare_trunk, start, prefill (unless the tail is one
      token), decode_first (with the smallest cache) and grow (one layer of the cache, to its
      largest size), unless it has only one size, decode (with the largest cache), trunk_forward,
      accumulate, trunk_backward, optimizer.
    """
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        tables, program = _whole(mesh, tables), _Compiler(compiled_one)
        _compile_rollout(program, config, model, tables, mesh)
        longest = rollout.total_positions(config.rollout, tables)
        length = branch_length or update.padded_length(longest, longest, config.train.t_multiple)
        _compile_update(program, config, model, mesh, length)
        return program.compiled


def table_shapes(vocab_size: int, tail: int, close: int) -> phases.Tables:
    """Shapes of the sampler's tables, for a tail and a close of so many tokens and no suffix."""
    struct: Any = jax.ShapeDtypeStruct
    states = len(formats.MARKER) + 1
    return phases.Tables(
        tail_ids=struct((tail,), jnp.int32),
        forced_ids=struct((close,), jnp.int32),
        close_length=struct((), jnp.int32),
        automaton_VS=struct((vocab_size, states), jnp.uint8),
        straddles_VS=struct((vocab_size, states), bool),
        stop_V=struct((vocab_size,), bool),
    )


class _Compiler:
    """Compiles one program after the other and keeps them by name."""

    def __init__(self, compiled_one: CompiledOne):
        self.compiled: dict[str, jax.stages.Compiled] = {}
        self._compiled_one = compiled_one

    def __call__(self, name: str, function: Any, *args: Any, **static: Any) -> Any:
        """The shapes and shardings of the program's results."""
        began = time.perf_counter()
        lowered = function.lower(*args, **static)
        compiled = self.compiled[name] = lowered.compile()
        self._compiled_one(name, compiled, time.perf_counter() - began)
        return jax.tree.map(_struct, lowered.out_info, compiled.output_shardings)


def _parameters(model: model_config.ModelConfig, mesh: Mesh) -> Any:
    shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    axes = transformer.logical_axes(model)
    return jax.tree.map(_struct, shapes, sharding.parameter_shardings(mesh, axes, shapes))


def _rows(mesh: Mesh, dtype: Any) -> Callable[[tuple[int, ...]], Any]:
    """Arrays whose first axis is B."""
    placed = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    return functools.partial(jax.ShapeDtypeStruct, dtype=dtype, sharding=placed)


def _compile_rollout(
    program: _Compiler, config: config_lib.Config, model, tables: phases.Tables, mesh: Mesh
) -> None:
    B, S = config.train.batch_size, config.train.seq_len
    R = config.positions.cuts_per_document * config.rollout.group_size
    T = rollout.total_positions(config.rollout, tables)
    tail = tables.tail_ids.shape[0]
    sizes = branch_cache.ladder(config.rollout.chunk_tokens + tail, T)
    ints = _rows(mesh, jnp.int32)
    params = _parameters(model, mesh)
    _, kv = program("score", scoring.score_trunk, model, params, *[ints((B, S))] * 3)
    copy = program("sampling_copy", decoding.sampling_copy, model, params)
    trunk = program("prepare_trunk", decoding.prepare_trunk, model, kv)
    hi_BR, key_BR2 = _whole(mesh, (ints((B, R)), jax.ShapeDtypeStruct((B, R, 2), jnp.uint32)))
    live_BR = jax.ShapeDtypeStruct((B, R), bool, sharding=hi_BR.sharding)
    branches, cache = program(
        "start", rollout.start, model, tables, hi_BR, live_BR, key_BR2, None, T, sizes[0]
    )
    if tail > 1:
        ids = jax.ShapeDtypeStruct((tail - 1,), jnp.int32, sharding=tables.tail_ids.sharding)
        cache = program("prefill", rollout.prefill, model, copy, kv, cache, branches, ids)
    t = jax.ShapeDtypeStruct((), jnp.int32, sharding=tables.tail_ids.sharding)

    def decode(name: str, cache: decoding.Cache, size: int) -> None:
        fixed = (model, config.rollout, copy, tables, trunk)
        program(name, rollout.decode, *fixed, cache, branches, t, size, False)

    if len(sizes) > 1:
        decode("decode_first", cache, sizes[0])
        # All layers are alike; the one of the size before the last.
        shapes = jax.eval_shape(
            functools.partial(branch_cache.grow_layer, size=sizes[-2]), cache[0]
        )
        past = jax.tree.map(lambda x, like: _struct(x, like.sharding), shapes, cache[0])
        cache = (program("grow", branch_cache.grow_layer, past, size=T),) * len(cache)
    decode("decode", cache, T)


def _compile_update(
    program: _Compiler, config: config_lib.Config, model, mesh: Mesh, length: int
) -> None:
    B, S = config.train.batch_size, config.train.seq_len
    R, T = config.train.micro_branches, length
    objective, temperature = config.objective, config.rollout.temperature or 1.0
    truncated = config.rollout.top_k > 0 or config.rollout.top_p < 1
    ints, floats = _rows(mesh, jnp.int32), _rows(mesh, jnp.float32)
    params = _parameters(model, mesh)
    batch = update.MicroBatch(
        tokens_BRT=ints((B, R, T)),
        weight_BRT=floats((B, R, T)),
        behaviour_BRT=floats((B, R, T)),
        threshold_BRT=floats((B, R, T)) if truncated else None,
        reference_BRT=floats((B, R, T)) if objective.kl_weight else None,
        advantage_BR=floats((B, R)),
        hi_BR=ints((B, R)),
    )
    inputs = update.TrunkInputs(ints((B, S)), ints((B, S)), ints((B, S)), floats((B, S)))
    _, kv, backward = program("trunk_forward", update.trunk_forward, model, params, inputs)
    # Compiled for no device that it is told of, it has no arguments that are read.
    total = jax.eval_shape(functools.partial(update.zeros, model), params, kv)
    total = update.Gradients(
        jax.tree.map(lambda x, like: _struct(x, like.sharding), total.params, params),
        jax.tree.map(lambda x, like: _struct(x, like.sharding), total.kv_LBSKH, kv),
        _whole(mesh, total.terms),
    )
    total = program(
        "accumulate", update.accumulate, model, objective, temperature, params, kv, batch, total
    )
    weight = _whole(mesh, jax.ShapeDtypeStruct((), jnp.float32))
    grads = program(
        "trunk_backward", update.trunk_backward, model, backward, total.params, total.kv_LBSKH,
        weight,
    )  # fmt: skip
    optimizer = optimizers.make(config.train.optimizer)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda moment, parameter: _struct(moment, parameter.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda x: _struct(x, weight.sharding),
    )
    program("optimizer", update.apply, optimizer, params, opt_state, grads, weight)


def _struct(x: Any, placed: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)


def _whole(mesh: Mesh, tree: Any) -> Any:
    """On every device."""
    return jax.tree.map(lambda x: _struct(x, NamedSharding(mesh, PartitionSpec())), tree)
