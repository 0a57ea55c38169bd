"""Log-probabilities, entropy and their gradients against float64 in numpy; memory from XLA.

Letters: M rows, D width, V vocabulary, K the largest logits.
"""

import contextlib
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels.logprob import api, chunked, pallas_tpu, specs

# Neither M nor V is a multiple of a tile of chunked (8, 128) or of a block of pallas.
M, D, V = 10, 6, 301
BLOCKS = {"small": ((128, 4),), "beyond": ((512, 512),)}
TILES = {"whole": (2**21, 2048), "columns": (M * 128, M), "both": (8 * 128, 8)}
CASES = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "truncated": {"temperature": 0.7, "keep": 5},
    "scale_and_cap": {"logit_scale": 1.5, "soft_cap": 3.0},
    "everything": {"temperature": 0.7, "keep": 5, "logit_scale": 0.8, "soft_cap": 2.5},
}
FUSED = ["chunked both", "pallas small"]
# Every way in which the op is computed here; interpreting a kernel is slow.
WAYS = [
    *[(way, case) for way in ("reference", "chunked both") for case in CASES],
    *[(way, "everything") for way in ("chunked whole", "chunked columns", "pallas beyond")],
    *[("pallas small", case) for case in ("plain", "everything")],
]


class Reference(NamedTuple):
    """float64 values, and the gradient of sum(a * log_prob + b * log_sum_exp + c * entropy)."""

    log_prob_M: np.ndarray
    log_sum_exp_M: np.ndarray
    entropy_M: np.ndarray
    hidden_MD: np.ndarray
    unembedding_VD: np.ndarray


def reference(
    hidden,
    unembedding,
    labels,
    weights_3M,
    *,
    temperature=1.0,
    threshold_M=None,
    logit_scale=1.0,
    soft_cap=None,
) -> Reference:
    """By the textbook: d log p_y / d logit_j = 1[j = y] - p_j, and dH / d logit_j = -p_j (log p_j
    + H), over the tokens kept."""
    hidden, unembedding = (np.asarray(x).astype(np.float64) for x in (hidden, unembedding))
    scaled = hidden @ unembedding.T * logit_scale
    capped = scaled if soft_cap is None else soft_cap * np.tanh(scaled / soft_cap)
    logits = capped / temperature
    onehot = np.arange(len(unembedding)) == labels[:, None]
    above = np.ones_like(onehot) if threshold_M is None else logits >= threshold_M[:, None]
    kept = above | onehot
    greatest = logits.max(axis=1)
    weight = np.where(kept, np.exp(logits - greatest[:, None]), 0)
    log_sum_exp = greatest + np.log(np.sum(weight, axis=1))
    log_p = np.where(kept, logits - log_sum_exp[:, None], 0)
    p = np.where(kept, np.exp(log_p), 0)
    entropy = -np.sum(p * log_p, axis=1)
    a, b, c = weights_3M[:, :, None]
    d_logits = a * (onehot - p) + b * p - c * p * (log_p + entropy[:, None])
    slope = 1.0 if soft_cap is None else 1 - (capped / soft_cap) ** 2
    d_logits *= slope * logit_scale / temperature
    return Reference(
        np.sum(onehot * log_p, axis=1),
        log_sum_exp,
        entropy,
        d_logits @ unembedding,
        d_logits.T @ hidden,
    )


def inputs():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(M, D)).astype(np.float32)
    unembedding = rng.normal(size=(V, D)).astype(np.float32)
    labels = rng.integers(0, V, M).astype(np.int32)
    return hidden, unembedding, labels, rng.normal(size=(3, M)).astype(np.float32)


def options(name, hidden, unembedding) -> dict:
    """Of the op; a threshold lies between the `keep`-th and the next tempered logit of each row."""
    found = dict(CASES[name])
    keep = found.pop("keep", None)
    if keep is not None:
        logits = np.asarray(hidden, np.float64) @ np.asarray(unembedding, np.float64).T
        logits *= found.get("logit_scale", 1.0)
        cap = found.get("soft_cap", np.inf)
        capped = cap * np.tanh(logits / cap) if np.isfinite(cap) else logits
        ordered = -np.sort(-capped / found["temperature"], axis=1)
        found["threshold_M"] = ((ordered[:, keep - 1] + ordered[:, keep]) / 2).astype(np.float32)
    return found


@contextlib.contextmanager
def computed(way: str, monkeypatch):
    """Yields the op's implementation (None of ''), with tiles or blocks of the named sizes."""
    implementation, _, size = way.partition(" ")
    if implementation == "chunked":
        monkeypatch.setattr(chunked, "TILE_LOGITS", TILES[size][0])
        monkeypatch.setattr(chunked, "_TILE_ROWS", TILES[size][1])
        monkeypatch.setattr(chunked, "_SCORE_ROWS", TILES[size][1])
    if implementation == "pallas":
        monkeypatch.setattr(pallas_tpu, "_BLOCKS", BLOCKS[size])
    interpret = implementation == "pallas"
    with pltpu.force_tpu_interpret_mode() if interpret else contextlib.nullcontext():
        yield implementation or None


def value_and_gradients(way, monkeypatch, hidden, unembedding, labels, weights, **keywords):
    """The three results and the two gradients."""

    def loss(hidden, unembedding):
        result = api.logprob(hidden, unembedding, labels, implementation=implementation, **keywords)
        return sum(jnp.sum(w * x) for w, x in zip(weights, result, strict=True)), result

    with computed(way, monkeypatch) as implementation:
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        grads, result = jax.block_until_ready(gradient(hidden, unembedding))
    return (*result, *grads)


@pytest.mark.parametrize(("way", "case"), WAYS)
def test_values_and_gradients(monkeypatch, way, case):
    arrays = hidden, unembedding, *_ = inputs()
    keywords = options(case, hidden, unembedding)
    found = value_and_gradients(way, monkeypatch, *arrays, **keywords)
    for x, wanted in zip(found, reference(*arrays, **keywords), strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, wanted, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("way", FUSED)
@pytest.mark.parametrize(
    ("parameters", "case"), [(jnp.float32, "everything"), (jnp.bfloat16, "plain")]
)
def test_bfloat16_states(monkeypatch, way, parameters, case):
    """Values as exact as in float32, of rounded operands; each gradient in its argument's dtype."""
    hidden, unembedding, labels, weights = inputs()
    hidden, unembedding = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(unembedding, parameters)
    rounded = unembedding.astype(jnp.bfloat16)
    keywords = options(case, hidden, rounded)
    found = value_and_gradients(way, monkeypatch, hidden, unembedding, labels, weights, **keywords)
    expected = reference(hidden, rounded, labels, weights, **keywords)
    for x, wanted in zip(found[:3], expected[:3], strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, wanted, atol=3e-5, rtol=1e-5)
    for x, wanted, dtype in zip(found[3:], expected[3:], (jnp.bfloat16, parameters), strict=True):
        assert x.dtype == dtype
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(np.asarray(x, np.float64) / scale, wanted / scale, atol=8e-3)


def test_the_renormaliser_is_differentiated():
    """Finite differences in float64 of the truncated log-probability itself."""
    hidden, unembedding, labels, _ = inputs()
    keywords = options("truncated", hidden, unembedding)
    weights = np.stack([np.ones(M), np.zeros(M), np.zeros(M)])
    direction = np.random.default_rng(1).normal(size=hidden.shape)

    def total(step):
        moved = hidden.astype(np.float64) + step * direction
        return reference(moved, unembedding, labels, weights, **keywords).log_prob_M.sum()

    slope = (total(1e-6) - total(-1e-6)) / 2e-6

    def loss(hidden):
        return api.logprob(hidden, unembedding, labels, **keywords).log_prob_M.sum()

    np.testing.assert_allclose(np.sum(jax.grad(loss)(hidden) * direction), slope, rtol=1e-4)


@pytest.mark.parametrize("way", ["reference", *FUSED])
def test_the_label_stays_although_it_is_below_the_threshold(monkeypatch, way):
    """A trainer's rounding must not turn a sampled token into probability zero."""
    hidden, unembedding, _, weights = inputs()
    labels = np.argmin(hidden @ unembedding.T, axis=1).astype(np.int32)
    threshold = np.full(M, 1e9, np.float32)
    found = value_and_gradients(
        way, monkeypatch, hidden, unembedding, labels, weights, threshold_M=threshold
    )
    lowest = np.min(hidden @ unembedding.T, axis=1)
    for x, wanted in zip(found[:3], (np.zeros(M), lowest, np.zeros(M)), strict=True):
        np.testing.assert_allclose(x, wanted, atol=1e-6)
    # Only d log-sum-exp / d hidden is left: the label's embedding.
    wanted = weights[1][:, None] * unembedding[labels]
    np.testing.assert_allclose(found[3], wanted, atol=1e-5)


@pytest.mark.parametrize("way", FUSED)
def test_rows_without_a_cotangent_add_nothing(monkeypatch, way):
    """Whatever they hold: nothing, infinities, NaN, huge states, no label."""
    arrays = hidden, unembedding, labels, weights = inputs()
    keywords = options("truncated", hidden, unembedding)
    dead = np.arange(M) % 2 == 1
    weights[:, dead] = 0
    expected = reference(*arrays, **keywords)
    hidden[dead] = np.array([0, np.inf, np.nan, 1e30, -1e38])[:, None]
    labels[dead] = [-1, V, 0, 2**31 - 1, -(2**31)]
    found = value_and_gradients(way, monkeypatch, *arrays, **keywords)
    np.testing.assert_array_equal(np.asarray(found[3])[dead], 0)
    np.testing.assert_allclose(found[3][~dead], expected.hidden_MD[~dead], atol=3e-5)
    np.testing.assert_allclose(found[4], expected.unembedding_VD, atol=3e-5)


@pytest.mark.parametrize("way", ["reference", *FUSED])
def test_a_label_outside_of_the_vocabulary_has_logit_zero(monkeypatch, way):
    hidden, unembedding, labels, weights = inputs()
    outside = np.where(np.arange(M) % 2, -1, V).astype(np.int32)
    found = value_and_gradients(way, monkeypatch, hidden, unembedding, outside, weights)
    wanted = reference(hidden, unembedding, labels, weights)
    np.testing.assert_allclose(found[0], -wanted.log_sum_exp_M, rtol=1e-5)
    np.testing.assert_allclose(found[2], wanted.entropy_M, atol=3e-5)
    assert all(np.isfinite(x).all() for x in found)


@pytest.mark.parametrize("way", FUSED)
def test_large_logits_do_not_cost_the_entropy_its_digits(monkeypatch, way):
    """Entropy as log-sum-exp minus the mean logit would lose 4 digits here. Dot products on a grid
    are exact, so the logits are those of float64."""
    hidden, unembedding, labels, weights = inputs()
    hidden, unembedding = np.round(hidden * 8) / 8, np.round(unembedding * 8) / 8
    hidden[:, 0], unembedding[:, 0] = 64, 128
    with computed(way, monkeypatch) as implementation:
        found = api.logprob(hidden, unembedding, labels, implementation=implementation)
    wanted = reference(hidden, unembedding, labels, weights)
    assert wanted.log_sum_exp_M.min() > 8000
    np.testing.assert_allclose(found.entropy_M, wanted.entropy_M, atol=2e-5)


def test_the_default_on_this_platform_is_chunked(monkeypatch):
    arrays = inputs()
    default, chunks = (
        value_and_gradients(way, monkeypatch, *arrays) for way in ("", "chunked whole")
    )
    for x, y in zip(default, chunks, strict=True):
        np.testing.assert_array_equal(x, y)


def test_logits_of_bfloat16_states_are_accumulated_in_float32():
    hidden, unembedding, _, _ = inputs()
    half = jnp.asarray(hidden, jnp.bfloat16)
    found = api.logits(half, jnp.asarray(unembedding))
    rounded = np.asarray(jnp.asarray(unembedding, jnp.bfloat16), np.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.asarray(half, np.float32) @ rounded.T, atol=1e-5)


# --- score


@pytest.mark.parametrize("way", ["reference", "chunked whole", "chunked columns", "chunked both"])
@pytest.mark.parametrize("top", [1, 16])
def test_scores(monkeypatch, way, top):
    """On a grid so coarse that most logits have equals, which are ordered by id."""
    hidden, unembedding, labels, weights = inputs()
    hidden, unembedding = (np.round(x * 2) / 2 for x in (hidden, unembedding))
    with computed(way, monkeypatch) as implementation:
        found = jax.jit(functools.partial(api.score, top=top, implementation=implementation))(
            hidden, unembedding, labels
        )
    expected = reference(hidden, unembedding, labels, weights)
    np.testing.assert_allclose(found.log_prob_M, expected.log_prob_M, atol=2e-5)
    np.testing.assert_allclose(found.entropy_M, expected.entropy_M, atol=2e-5)
    logits = hidden @ unembedding.T
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    ordered = np.take_along_axis(logits, order, 1)
    assert top == 1 or (np.diff(ordered) == 0).any(axis=1).all()
    np.testing.assert_array_equal(found.top_ids_MK, order)
    np.testing.assert_array_equal(found.top_logits_MK, ordered)


# --- memory


def temporaries(implementation, M, D, V, dtype=jnp.float32) -> int:
    """Bytes that forward and backward need beside arguments and results. Nothing is run."""

    def total(hidden, unembedding, labels):
        result = api.logprob(hidden, unembedding, labels, implementation=implementation)
        return sum(jnp.sum(x) for x in result)

    shapes = specs.Spec(M=M, D=D, V=V).inputs(dtype)[:3]
    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("M", "D", "V"), [(4096, 1536, 151936), (2048, 576, 49152)])
def test_memory_is_a_small_part_of_what_the_logits_need(M, D, V):
    found, needed = (temporaries(name, M, D, V) for name in ("chunked", "reference"))
    assert needed >= 4 * M * V
    assert found < 0.05 * needed


def test_memory_does_not_grow_with_the_vocabulary():
    small, large = (temporaries("chunked", 2048, 64, V) for V in (32768, 262144))
    assert large <= small


def test_memory_of_many_rows_is_that_of_a_tile_and_of_dh():
    M, D = 65536, 64
    tile = 4 * chunked.TILE_LOGITS
    assert temporaries("chunked", M, D, 49152) < 4 * tile + 3 * (4 * M * D) + 64 * M


# --- errors


def test_what_does_not_fit_is_refused_in_one_line():
    hidden, unembedding, labels, _ = inputs()
    half = hidden.astype(np.float16)
    wide = np.zeros((8, 40000), np.float32)
    for call, message in (
        (lambda: api.logprob(hidden[None], unembedding, labels), "need shapes"),
        (lambda: api.logprob(hidden, unembedding[:, 1:], labels), "need shapes"),
        (lambda: api.logprob(hidden, unembedding, labels[1:]), "need shapes"),
        (lambda: api.logprob(hidden, unembedding, labels, temperature=0.0), "must be positive"),
        (lambda: api.logprob(hidden, unembedding, labels, soft_cap=-1.0), "must be positive"),
        (
            lambda: api.logprob(hidden, unembedding, labels, implementation="fast"),
            "choose one of reference, chunked, pallas",
        ),
        (
            lambda: api.logprob(half, unembedding, labels, implementation="pallas"),
            "must be float32 or bfloat16",
        ),
        (
            lambda: api.logprob(wide, wide, labels[:8], implementation="pallas"),
            "width 40000 needs more than",
        ),
        (lambda: api.score(hidden, unembedding, labels, top=V + 1), "must be between 1 and"),
        (
            lambda: api.score(hidden, unembedding, labels, top=1, implementation="pallas"),
            "choose one of reference, chunked",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
