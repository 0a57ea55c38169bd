"""Sampling is exact, what it reports is true, and its noise is Gumbel noise.

Seeds are fixed, so each bound is met always or never. Letters: M rows, D width, V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.experimental.pallas import tpu as pltpu

from kernels.logprob import api as logprob
from kernels.sample import api, bisection, candidates, chunked, noise, reference, specs, tiles
from kernels.sample.result import Request

OPTIONS = ("temperature", "top_k", "top_p", "logit_scale", "soft_cap", "implementation")
sample = jax.jit(api.sample, static_argnames=OPTIONS)
chunked_sample = functools.partial(sample, implementation="chunked")
LOGITS_V = np.array([0.3, -1.0, 2.0, 1.7, -3.0, 0.9, 2.1, 0.0, -0.4, 1.1, -2.0, 0.5], np.float32)
SETTINGS = {
    "plain": {"temperature": 1.0},
    "temperature": {"temperature": 0.6},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_p": {"temperature": 1.3, "top_p": 0.8},
    "top_k_and_top_p": {"temperature": 0.9, "top_k": 6, "top_p": 0.7},
}


@functools.cache
@functools.partial(jax.jit, static_argnums=0)
def row_keys(rows: int, seed=0):
    return noise.fold(noise.root_keys(seed, rows), jnp.arange(rows))


def of_logits(logits_MV, **options):
    """Samples from given logits: hidden states that are the logits, under an identity."""
    logits_MV = jnp.asarray(logits_MV, jnp.float32)
    M, V = logits_MV.shape
    return chunked_sample(logits_MV, jnp.eye(V), row_keys(M), **options)


def truncated(logits_V, temperature=1.0, top_k=0, top_p=1.0) -> np.ndarray:
    """The oracle: probabilities in float64, kept greedily in the order (probability, lowest id),
    and with the last of them its equals."""
    logits = np.asarray(logits_V, np.float64) / temperature
    order = np.argsort(-logits, kind="stable")[: top_k or len(logits)]
    p = np.exp(logits[order] - logits.max())
    p /= p.sum()
    before = np.cumsum(p) - p
    # Rounding: the tail's mass before a token may reach 1 exactly, and 1 cuts nothing.
    kept = order if top_p == 1 else order[before < top_p]
    full = np.where(logits >= logits[kept].min(), np.exp(logits - logits.max()), 0)
    return full / full.sum()


def random_inputs(M, V, D, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(M, D)), jnp.float32)
    return hidden, jnp.asarray(rng.normal(size=(V, D)) * scale, jnp.float32), row_keys(M)


def dyadic_inputs(M, V, D, seed=0):
    """Products are exact in float32, and ties are many."""
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.integers(-8, 9, (M, D)) / 4, jnp.float32)
    return hidden, jnp.asarray(rng.integers(-8, 9, (V, D)) / 8, jnp.float32), row_keys(M)


def assert_same(found, expected, tolerance=1e-5):
    """Equal tokens; the rest up to rounding."""
    np.testing.assert_array_equal(found.token_M, expected.token_M)
    np.testing.assert_array_equal(found.best_M, expected.best_M)
    for field in ("log_prob_M", "threshold_M", "log_mass_M"):
        x, y = getattr(found, field), getattr(expected, field)
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=0, err_msg=field)


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles, groups of tiles and blocks of rows at small sizes; the last of each partial.
    `sample` does not know that it would be another program."""
    monkeypatch.setattr(tiles, "_MIN_TILE", 32)
    monkeypatch.setattr(tiles, "_MAX_TILE", 64)
    monkeypatch.setattr(chunked, "_ROWS", 16)
    monkeypatch.setattr(chunked, "_SMALL", 0)
    monkeypatch.setattr(chunked, "_BINS", 16)
    sample.clear_cache()
    yield
    sample.clear_cache()


@pytest.mark.parametrize("name", SETTINGS)
def test_goodness_of_fit(name):
    """Chi-square over a million draws each of plain, top-k and top-p, and a quarter of that of what
    they combine into; tokens cut away never occur; log_prob is the true one."""
    rows = 2**18 if name in ("temperature", "top_k_and_top_p") else 2**20
    logits_1V = jnp.asarray(LOGITS_V)[:, None]
    drawn = chunked_sample(jnp.ones((rows, 1)), logits_1V, row_keys(rows), **SETTINGS[name])
    p = truncated(LOGITS_V, **SETTINGS[name])
    counts = np.bincount(drawn.token_M, minlength=len(p))
    assert counts[p == 0].sum() == 0
    assert (p == 0).any() == ("top" in name)
    fit = scipy.stats.chisquare(counts[p > 0], rows * p[p > 0])
    assert fit.pvalue > 1e-3
    np.testing.assert_allclose(drawn.log_prob_M, np.log(p[drawn.token_M]), atol=1e-5)
    assert (np.asarray(drawn.best_M) == 6).all()
    whole = truncated(LOGITS_V, SETTINGS[name]["temperature"])
    np.testing.assert_allclose(drawn.log_mass_M, np.log(whole[p > 0].sum()), atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_trainer_with_the_threshold_sees_the_same_log_probability(name):
    """Through hidden states, on rows that differ, with small vocabulary ties included."""
    options = SETTINGS[name]
    rng = np.random.default_rng(0)
    hidden = np.round(rng.normal(size=(500, 8)) * 2).astype(np.float32) / 2
    unembedding = np.round(rng.normal(size=(24, 8)) * 2).astype(np.float32) / 2
    drawn = chunked_sample(hidden, unembedding, row_keys(500), **options)
    trained = logprob.logprob(
        hidden,
        unembedding,
        drawn.token_M,
        temperature=options["temperature"],
        threshold_M=drawn.threshold_M,
    )
    np.testing.assert_allclose(drawn.log_prob_M, trained.log_prob_M, atol=1e-5)
    logits = hidden @ unembedding.T
    kept = logits * np.float32(1 / options["temperature"]) >= np.asarray(drawn.threshold_M)[:, None]
    for row in range(500):
        np.testing.assert_array_equal(kept[row], truncated(logits[row], **options) > 0)


def test_scale_and_soft_cap_are_the_trainers():
    options = {"temperature": 0.7, "logit_scale": 1.3, "soft_cap": 2.0}
    hidden, unembedding, keys = random_inputs(64, 50, 8)
    drawn = sample(hidden, unembedding, keys, top_k=9, **options)
    trained = logprob.logprob(
        hidden, unembedding, drawn.token_M, threshold_M=drawn.threshold_M, **options
    )
    np.testing.assert_allclose(drawn.log_prob_M, trained.log_prob_M, atol=1e-5)
    logits = 2 * np.tanh(1.3 * np.asarray(hidden @ unembedding.T, np.float64) / 2)
    for row in range(64):
        p = truncated(logits[row], 0.7, 9)
        assert abs(np.log(p[drawn.token_M[row]]) - drawn.log_prob_M[row]) < 1e-5


def test_ties_break_by_the_lowest_id():
    greedy = of_logits([[1.0, 3.0, 3.0, 2.0, 3.0]], temperature=0.0)
    assert greedy.token_M[0] == 1
    assert greedy.best_M[0] == 1
    assert greedy.log_prob_M[0] == 0


def test_ties_at_the_threshold_stay_in_sampler_and_trainer():
    """top_k=2 of three equal logits: all three stay, with probability 1/3 each on both sides, even
    where the trainer's logits are a rounding error lower."""
    hidden, unembedding = jnp.ones((64, 1)), jnp.asarray([[1.0], [3.0], [3.0], [2.0], [3.0]])
    drawn = chunked_sample(hidden, unembedding, row_keys(64), temperature=1.0, top_k=2)
    assert set(np.asarray(drawn.token_M).tolist()) == {1, 2, 4}
    np.testing.assert_allclose(drawn.log_prob_M, -np.log(3), atol=1e-6)
    np.testing.assert_allclose(drawn.threshold_M, 2.5)
    for factor in (1, 1 - 1e-6):
        trained = logprob.logprob(
            hidden, unembedding * factor, drawn.token_M, threshold_M=drawn.threshold_M
        )
        np.testing.assert_allclose(trained.log_prob_M, -np.log(3), atol=1e-6)


def test_the_threshold_never_keeps_the_dropped_logit():
    """Halfway between neighbouring floats is one of them."""
    low = np.float32(1.0)
    for _ in range(3):
        high = np.nextafter(low, np.float32(2))
        threshold = reference.halfway(jnp.asarray([high]), jnp.asarray([low]))
        assert low < threshold[0] <= high
        low = high


def test_truncation_to_one_token_is_greedy():
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(50, 30)), jnp.float32)
    for top_k, top_p in ((1, 1.0), (0, 1e-6)):
        drawn = of_logits(rows, temperature=1.0, top_k=top_k, top_p=top_p)
        np.testing.assert_array_equal(drawn.token_M, np.argmax(rows, axis=1))
        np.testing.assert_allclose(drawn.log_prob_M, 0, atol=1e-6)


def test_the_only_token_is_drawn_even_if_its_noise_is_minus_infinity(monkeypatch):
    monkeypatch.setattr(noise, "_hash", lambda a, b, ids: jnp.full_like(a + b + ids, 0xFFFFFFFF))
    hidden, unembedding, keys = random_inputs(8, 30, 4)
    for top_k in (0, 1):
        call = functools.partial(api.sample, temperature=1.0, top_k=top_k)
        drawn = jax.jit(functools.partial(call, implementation="chunked"))(
            hidden, unembedding, keys
        )
        np.testing.assert_array_equal(drawn.token_M, drawn.best_M)
        assert np.isfinite(drawn.log_prob_M).all()


EDGES = {
    "plain": {"temperature": 0.7},
    "greedy": {"temperature": 0.0},
    "top_k": {"temperature": 1.0, "top_k": 7},
    "top_k_of_most": {"temperature": 1.0, "top_k": 298},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "top_p_of_most": {"temperature": 2.0, "top_p": 0.999},
    "both": {"temperature": 0.8, "top_k": 60, "top_p": 0.8},
}


# bfloat16 where tokens are drawn in other ways: without and with a list of candidates.
EDGE_CASES = [(name, jnp.float32) for name in EDGES]
EDGE_CASES += [(name, jnp.bfloat16) for name in ("plain", "greedy", "both")]


@pytest.mark.parametrize(("name", "dtype"), EDGE_CASES)
@pytest.mark.usefixtures("small_tiles")
def test_chunked_equals_the_reference(name, dtype):
    """Whatever mixes candidates and bisection, with partial tiles, groups and row blocks; half of
    the rows have many ties. Products of bfloat16 are summed in float32: log-probabilities are those
    of float64 for the states as they are."""
    hidden, unembedding, keys = random_inputs(37, 299, 3)
    hidden = hidden.at[20:].set(0).at[20:, 0].set(2).astype(dtype)
    arrays = hidden, (jnp.round(unembedding * 8) / 8).astype(dtype), keys
    options = EDGES[name]
    expected = sample(*arrays, implementation="reference", **options)
    assert_same(sample(*arrays, implementation="chunked", **options), expected)
    logits = np.asarray(arrays[0], np.float64) @ np.asarray(arrays[1], np.float64).T
    if options["temperature"]:
        for row in range(37):
            p = truncated(logits[row], **options)
            assert abs(np.log(p[expected.token_M[row]]) - expected.log_prob_M[row]) < 1e-5


def hard_rows(V: int, bins: int) -> dict[str, np.ndarray]:
    """Logits [V] that candidates find hard."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=V)
    one_bin = np.where(np.arange(V) % bins == 3, logits + 9, logits)
    steps = np.round(logits * 2) / 2
    neighbours = np.nextafter(np.float32(1), np.float32(2))
    return {
        "ordinary": 4 * logits,
        "one_bin": one_bin,
        "equal": np.zeros(V),
        "equal_below_zero": np.full(V, -3.25),
        "flat": logits / 50,
        "ties": steps,
        "neighbouring_floats": np.where(logits > 0, neighbours, 1.0),
        "far_apart": np.where(np.arange(V) == 7, 60.0, -60.0) + steps,
    }


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(1, 1.0), (20, 1.0), (200, 1.0), (0, 0.5), (0, 0.99), (30, 0.6)],
)
def test_candidates_and_bisection_agree_with_the_oracle(top_k, top_p):
    """Bisection always; candidates wherever they claim a proof."""
    V = 500
    rows = {name: x.astype(np.float32) for name, x in hard_rows(V, bins=8).items()}
    logits_MV = np.stack(list(rows.values()))
    request = Request(1.0, top_k, top_p)
    keys = row_keys(len(rows))

    @jax.jit
    def both(hidden, unembedding, keys):
        stream = tiles.stream(request, hidden, unembedding, keys)
        drawn, proven, peak, mass = candidates.sample(request, chunked._candidates(stream), keys)
        return drawn, proven, bisection.sample(stream, drawn.best_M, peak, mass)

    listed, proven, searched = both(jnp.asarray(logits_MV), jnp.eye(V), keys)
    expected = sample(
        logits_MV, jnp.eye(V), keys, temperature=1.0, top_k=top_k, top_p=top_p,
        implementation="reference",
    )  # fmt: skip
    assert_same(searched, expected)
    some = np.asarray(proven)
    assert_same(*(jax.tree.map(lambda x: np.asarray(x)[some], y) for y in (listed, expected)))
    names = dict(zip(rows, some.tolist()))
    assert names["far_apart"] or top_k > 1
    assert not names["equal"]
    if top_k == 20:
        assert names["ordinary"]
        assert not names["one_bin"]
    for row, logits in enumerate(logits_MV):
        kept = logits >= np.asarray(searched.threshold_M)[row]
        np.testing.assert_array_equal(kept, truncated(logits, 1.0, top_k, top_p) > 0)


def test_a_list_shorter_than_top_k_proves_nothing_about_its_mass():
    """Of 704 logits 352 are listed; top-p's share is one of the 500 largest."""
    logits = np.where(np.arange(704) % 35 == 0, 4.0, 0.0).astype(np.float32)
    rows = jnp.ones((1, 1)), jnp.asarray(logits)[:, None], row_keys(1)
    options = {"temperature": 1.0, "top_k": 500, "top_p": 0.73}
    expected = sample(*rows, implementation="reference", **options)
    assert_same(chunked_sample(*rows, **options), expected)


def test_ordinary_rows_need_one_pass():
    """At real sizes the candidates suffice; a list too short for top_p is noticed."""
    V, rows = 8192, 32
    hidden, unembedding, keys = random_inputs(rows, V, 16, scale=0.9)

    @functools.partial(jax.jit, static_argnums=0)
    def proven(request, hidden):
        stream = tiles.stream(request, hidden, unembedding, keys)
        return candidates.sample(request, chunked._candidates(stream), keys)[1]

    assert np.asarray(proven(Request(1.0, 50), hidden)).all()
    assert np.asarray(proven(Request(0.5, 0, 0.9), hidden)).all()
    assert not np.asarray(proven(Request(1.0, 0, 0.99), hidden / 100)).any()


@pytest.mark.parametrize("name", ["plain", "both"])
def test_any_tile_and_any_rows_give_the_same_tokens(name, monkeypatch):
    """Bit for bit where products are exact."""
    hidden, unembedding, keys = dyadic_inputs(24, 300, 4)
    call = functools.partial(api.sample, implementation="chunked", **EDGES[name])
    whole = jax.jit(call)(hidden, unembedding, keys)
    part = jax.jit(call)(hidden[5:16], unembedding, keys[5:16])
    np.testing.assert_array_equal(part.token_M, whole.token_M[5:16])
    monkeypatch.setattr(tiles, "_MIN_TILE", 16)
    monkeypatch.setattr(tiles, "_MAX_TILE", 16)
    monkeypatch.setattr(chunked, "_ROWS", 10)
    monkeypatch.setattr(chunked, "_SMALL", 0)
    assert_same(jax.jit(functools.partial(call))(hidden, unembedding, keys), whole)


@pytest.mark.parametrize("name", specs.TINY)
def test_the_kernel_equals_the_reference(name):
    """In interpret mode; on the grid of exact products also in bfloat16."""
    spec = specs.TINY[name]
    dtype = jnp.bfloat16 if name in ("beyond_blocks", "top_k") else jnp.float32
    hidden, unembedding, keys = dyadic_inputs(spec.M, spec.V, spec.D)
    arrays = hidden.astype(dtype), unembedding.astype(dtype), keys
    expected = sample(*arrays, implementation="reference", **spec.options)
    with pltpu.force_tpu_interpret_mode():
        found = api.sample(*arrays, implementation="pallas", **spec.options)
    assert_same(found, expected)


@pytest.mark.parametrize("options", [{}, {"top_k": 50, "top_p": 0.95}])
def test_nothing_is_as_large_as_the_logits(options):
    """Compiled, not run: temporaries at a real size."""
    M, D, V = 4096, 1536, 151936
    spec = specs.Spec(M, D, V)
    call = functools.partial(sample.lower, temperature=1.0, implementation="chunked", **options)
    memory = call(*spec.inputs(jnp.float32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * 4 * M * V


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_MD": jnp.ones((3, 5))}, "expected hidden"),
        ({"keys_M2": jnp.ones((2, 2), jnp.uint32)}, "expected hidden"),
        ({"keys_M2": jnp.ones((3, 2), jnp.int32)}, "uint32"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"soft_cap": -2.0}, "soft_cap=-2.0"),
        ({"implementation": "fast"}, "unknown implementation 'fast'"),
    ],
)
def test_bad_requests_are_refused(change, message):
    arguments = {
        "hidden_MD": jnp.ones((3, 4)),
        "unembedding_VD": jnp.ones((9, 4)),
        "keys_M2": jnp.ones((3, 2), jnp.uint32),
        "temperature": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        api.sample(**(arguments | change))


def test_a_kernel_that_cannot_run_is_refused_and_never_chosen():
    hidden, unembedding, keys = random_inputs(4, 20, 8)
    wide = hidden.astype(jnp.float16)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        api.sample(wide, unembedding, keys, temperature=1.0, implementation="pallas")
    assert np.isfinite(api.sample(wide, unembedding, keys, temperature=1.0).log_prob_M).all()


def test_top_k_of_the_whole_vocabulary_cuts_nothing():
    arrays = random_inputs(16, 40, 8)
    plain = sample(*arrays, temperature=1.0)
    assert_same(sample(*arrays, temperature=1.0, top_k=40), plain)
    assert np.isneginf(plain.threshold_M).all()
    assert (np.asarray(plain.log_mass_M) == 0).all()


def test_specs_count_what_is_computed():
    for spec in specs.REAL.values():
        assert spec.flops == 2 * spec.M * spec.D * spec.V
        assert spec.bytes(jnp.bfloat16) > 2 * spec.V * spec.D
    assert dataclasses.replace(specs.TINY["top_k"], M=1).inputs(jnp.float32)[0].shape == (1, 16)


def test_noise_is_gumbel_without_correlations():
    """A million values: moments, Kolmogorov-Smirnov, and lags along ids, rows and positions."""
    rows, V = 1000, 1000
    keys = row_keys(rows)
    values = np.asarray(jax.jit(noise.gumbel)(keys, jnp.arange(V, dtype=jnp.uint32)), np.float64)
    assert np.isfinite(values).all()
    n = values.size
    deviation = np.pi / np.sqrt(6)
    assert abs(values.mean() - np.euler_gamma) < 4 * deviation / np.sqrt(n)
    # The kurtosis of a Gumbel variable is 5.4, so its variance's variance is 4.4 / n.
    assert abs(values.var() / deviation**2 - 1) < 4 * np.sqrt(4.4 / n)
    assert scipy.stats.kstest(values.reshape(-1), scipy.stats.gumbel_r.cdf).pvalue > 1e-3
    standard = (values - values.mean()) / values.std()
    for lag in (1, 2, 4, 256):
        assert abs(np.mean(standard[:, lag:] * standard[:, :-lag])) < 4 / np.sqrt(n)
        assert abs(np.mean(standard[lag:] * standard[:-lag])) < 4 / np.sqrt(n)
    # The next position of the same row is one further fold.
    moved = noise.fold(keys, jnp.full(rows, 1, jnp.uint32))
    other = np.asarray(noise.gumbel(moved, jnp.arange(V, dtype=jnp.uint32)), np.float64)
    assert abs(np.corrcoef(values.reshape(-1), other.reshape(-1))[0, 1]) < 4 / np.sqrt(n)


def test_noise_of_a_token_does_not_depend_on_what_is_computed_beside_it():
    """Bit for bit: any subset of rows and any tile of the vocabulary."""
    keys = row_keys(8)
    whole = np.asarray(noise.gumbel(keys, jnp.arange(64, dtype=jnp.uint32)))
    part = np.asarray(noise.gumbel(keys[5:7], jnp.arange(16, 48, dtype=jnp.uint32)))
    np.testing.assert_array_equal(part, whole[5:7, 16:48])
    backwards = np.asarray(noise.gumbel(keys[::-1], jnp.arange(64, dtype=jnp.uint32)))
    np.testing.assert_array_equal(backwards[::-1], whole)


def test_noise_depends_on_both_halves_of_the_key():
    base = jnp.asarray([[1, 2]], jnp.uint32)
    ids = jnp.arange(64, dtype=jnp.uint32)
    values = noise.gumbel(base, ids)
    for other in ([[3, 2]], [[1, 4]], [[2, 1]]):
        changed = noise.gumbel(jnp.asarray(other, jnp.uint32), ids)
        assert (np.asarray(values) != np.asarray(changed)).mean() > 0.99


def test_the_extremes_of_the_hash_are_never_preferred_by_mistake(monkeypatch):
    """All ones rounds to a uniform of 1, whose noise is -inf: never chosen; all zeros is finite."""
    for bits, check in ((0xFFFFFFFF, np.isneginf), (0, np.isfinite)):
        monkeypatch.setattr(
            noise, "_hash", lambda *_, bits=bits: jnp.full((1, 1), bits, jnp.uint32)
        )
        assert check(noise.gumbel(jnp.zeros((1, 2), jnp.uint32), jnp.zeros(1, jnp.uint32))).all()


def test_any_arrangement_of_the_noise_has_its_bits():
    keys, ids = row_keys(6), jnp.arange(50, dtype=jnp.uint32)
    rows_last = noise.gumbel_at(keys[:, 0], keys[:, 1], ids.astype(jnp.int32)[:, None])
    np.testing.assert_array_equal(rows_last.T, noise.gumbel(keys, ids))


def test_the_tail_of_the_noise():
    """What decides between the tokens of a large vocabulary: noise of fewer bits has no tail."""
    values = np.asarray(noise.gumbel(row_keys(2**7), jnp.arange(2**17, dtype=jnp.uint32)))
    for z in (6, 9, 12):
        expected = values.size * -np.expm1(-np.exp(-z))
        assert abs((values > z).sum() - expected) < 4 * np.sqrt(expected)
    assert np.mean([len(np.unique(row)) for row in values[:8]]) > 0.98 * values.shape[1]
