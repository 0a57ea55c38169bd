"""The closed formula against XLA's own count of unrolled programs, and the book-keeping."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import pytest

from kernels.branch_attention import api as branch_attention
from kernels.logprob import api as logprob
from rpt import ledger, ops
from rpt.model import config as config_lib
from rpt.model import decoding, transformer

MODEL = config_lib.ModelConfig(
    vocab_size=512, width=128, num_layers=1, num_heads=4, num_kv_heads=2, head_width=32,
    ff_width=384,
)  # fmt: skip
B, S, R, T, U = 2, 64, 4, 33, 48


def shapes(model):
    params = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    shape = (model.num_layers, B, S, model.num_kv_heads, model.head_width)
    return params, transformer.KeyValues(*[jax.ShapeDtypeStruct(shape, jnp.float32)] * 2)


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@pytest.fixture
def xla_flops(monkeypatch):
    """XLA's count of a program without loops (it counts a loop's body once): unrolled layers, and
    the attention that has all logits in memory."""
    unrolled = functools.partial(transformer.nn.scan, unroll=100)
    monkeypatch.setattr(transformer.nn, "scan", unrolled)
    for name in ("branch_attention", "decode_attention"):
        whole = functools.partial(getattr(branch_attention, name), implementation="reference")
        monkeypatch.setattr(ops, name, whole)

    def count(function, *arguments) -> float:
        cost = jax.jit(function).lower(*arguments).compile().cost_analysis()
        return cost["flops"]

    return count


def trunk_logits(model, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, kv = transformer.trunk(model, params, tokens, jnp.ones_like(tokens), positions)
    return logprob.logits(hidden, transformer.unembedding(model, params)), kv


def branch_logits(model, params, kv, tokens, hi):
    hidden, new = transformer.branch(model, params, kv, tokens, jnp.zeros_like(hi), hi, hi)
    return logprob.logits(hidden, transformer.unembedding(model, params)), new


def decode_logits(model, copy, trunk, cache, tokens, hi, t):
    hidden, cache = decoding.step(
        model, copy, trunk, cache, tokens, jnp.zeros_like(hi), hi, hi, t,
        decoding.rotations(model, trunk, U),
    )  # fmt: skip
    return logprob.logits(hidden, copy.unembedding_VD), cache


@pytest.mark.parametrize("num_layers", [1, 2])
def test_trunk_forward_is_what_xla_counts(xla_flops, num_layers):
    model = dataclasses.replace(MODEL, num_layers=num_layers)
    counted = xla_flops(functools.partial(trunk_logits, model), shapes(model)[0], ints(B, S))
    assert ledger.trunk_flops(model, B, S, passes=1) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_branch_forward_is_what_xla_counts(xla_flops, num_layers):
    """T - 1 positions are run, and each meets the whole trunk and the whole branch."""
    model = dataclasses.replace(MODEL, num_layers=num_layers)
    params, kv = shapes(model)
    counted = xla_flops(
        functools.partial(branch_logits, model), params, kv, ints(B, R, T - 1), ints(B, R)
    )
    tokens, flops = ledger.branch_update_flops(model, S, [(B, R, T)])
    assert tokens == B * R * (T - 1)
    assert flops / 3 == pytest.approx(counted, rel=0.03)


def test_a_decode_step_is_what_xla_counts(xla_flops):
    params, kv = shapes(MODEL)
    counted = xla_flops(
        functools.partial(decode_logits, MODEL),
        jax.eval_shape(functools.partial(decoding.sampling_copy, MODEL), params),
        jax.eval_shape(functools.partial(decoding.prepare_trunk, MODEL), kv),
        jax.eval_shape(lambda: decoding.empty_cache(MODEL, B, R, U)),
        ints(B, R),
        ints(B, R),
        ints(),
    )
    tokens, flops = ledger.decode_flops(MODEL, B, S, [(10, R, U), (6, R, U)])
    assert tokens == B * R * 16
    assert flops / 16 == pytest.approx(counted, rel=0.03)


def test_forward_and_backward_is_three_forwards(xla_flops):
    def loss(params, tokens):
        logits, _ = trunk_logits(MODEL, params, tokens)
        return jnp.sum(logits * logits)

    counted = xla_flops(jax.grad(loss), shapes(MODEL)[0], ints(B, S))
    assert ledger.trunk_flops(MODEL, B, S, passes=3) == pytest.approx(counted, rel=0.05)


def test_forward_flops_by_hand():
    """D=128, N*H=128, K*H=64, F=384, V=512; 10 tokens that meet 7 keys each."""
    layer = 128 * (128 + 64 + 64) + 128 * 128 + 3 * 128 * 384 + 2 * 128 * 7
    assert ledger.forward_flops(MODEL, 10, 7) == 2 * 10 * (layer + 128 * 512)
    assert ledger.forward_flops(MODEL, 10, 7, head=False) == 2 * 10 * layer


def test_a_branch_as_a_row_costs_its_prompt_again():
    row = ledger.forward_flops(MODEL, 80, 40)
    assert ledger.row_flops(MODEL, 64, 16, trained=False) == row
    assert ledger.row_flops(MODEL, 64, 16, trained=True) == 4 * row


def test_totals_by_kind():
    book = ledger.Ledger().add("update", 10, 1000).add("update", 5, 500).add("rollout", 2, 20)
    book = book.add("eval", 7, 70_000).add_rows(9).add_documents(3).add_documents(4)
    assert book.tokens == {"warmup": 0, "score": 0, "rollout": 2, "update": 15, "eval": 7}
    assert book.training_flops == 1520  # evaluation is not training
    assert (book.flops_as_rows, book.document_tokens) == (9, 7)
    assert ledger.Ledger().training_flops == 0  # no state is shared between ledgers
    with pytest.raises(KeyError):
        book.add("thinking", 1, 1)


def test_json_round_trip():
    """Counts above 2**53 stay exact: they are integers, never floats."""
    book = ledger.Ledger().add("score", 2**60 + 1, 2**70 + 3).add_rows(2**65 + 1).add_documents(5)
    text = json.dumps(dataclasses.asdict(book))
    assert ledger.Ledger(**json.loads(text)) == book
