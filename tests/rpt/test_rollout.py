"""The state machine of a branch, scripted; and what sampling may and may not depend on.

Scripts run on a model without layers to speak of, whose head makes the next token a function of
the last one. The other tests run on the tiny model and its randomness.

Letters: B documents, S trunk positions, C cuts, G thoughts per cut, R = C * G, T positions.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.logprob import api as logprob
from kernels.sample import noise
from rpt import formats, phases, rollout, update
from rpt.model import config as config_lib
from rpt.model import decoding, transformer

TOKENS = ("a", "b", "c", "d", "e", "f", "</thi", "nk>", "</think>", "nk>b", "\n", "<eos>",
          "<think>",
          "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t", "u", "v", "w", "x",
          "y", "z", "A", "<", "/think>")  # fmt: skip
ID = {text: i for i, text in enumerate(TOKENS)}
TEMPLATE = formats.parse_template("{{document}}A<think>{{thought}}c</think>\n{{answer}}")


@dataclasses.dataclass(frozen=True)
class ListTokenizer:
    """36 tokens; the longest match encodes."""

    vocab_size: int = len(TOKENS)
    bos_id: int | None = None
    eos_id: int | None = ID["<eos>"]

    def token_bytes(self, id: int) -> bytes:
        return TOKENS[id].encode()

    def encode_markup(self, text: str) -> np.ndarray:
        ids = []
        while text:
            match = max((token for token in TOKENS if text.startswith(token)), key=len)
            ids.append(ID[match])
            text = text.removeprefix(match)
        return np.array(ids, np.int32)


def make_tables(template=TEMPLATE) -> phases.Tables:
    """With four rows more than the tokenizer has tokens: they end a branch."""
    return phases.make_tables(ListTokenizer(), template, 40)


SCRIPTED = config_lib.ModelConfig(
    vocab_size=40, width=40, num_layers=1, num_heads=1, num_kv_heads=1, head_width=2, ff_width=2,
    tied_head=False,
)  # fmt: skip
SCRIPT_CONFIG = rollout.RolloutConfig(
    group_size=1, think_tokens=4, answer_tokens=2, chunk_tokens=64, temperature=1.0
)


def follow(script: list[str], config=SCRIPT_CONFIG, valid=True) -> dict:
    """Rolls out one branch in which every token of the script brings about the next one.

    Returns the branch's tokens after the tail and their flags, as lists.
    """
    shapes = jax.eval_shape(lambda: transformer.init(SCRIPTED, jax.random.key(0)))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    params["embedding"] = jnp.eye(40)
    params["final_norm"]["scale"] = jnp.full(40, 100.0)
    head = np.zeros((40, 40), np.float32)
    assert len(set(script)) == len(script), "a token has one successor"
    for here, there in itertools.pairwise(script):
        head[ID[there], ID[here]] = 1
    params["head"] = jnp.asarray(head)
    kv = transformer.KeyValues(*[jnp.zeros((1, 1, 4, 1, 2))] * 2)
    sampler = rollout.make_sampler(SCRIPTED, params, kv)
    out = rollout.rollout(
        SCRIPTED, config, sampler, make_tables(), np.array([[3]]), np.array([[valid]]),
        seed=0, step=0, document_ids_B=np.array([7]),
    )  # fmt: skip
    length, tail = int(out.length_BR[0, 0]), out.tail_length
    assert (out.log_prob_BRT[~out.sampled_BRT] == 0).all()
    assert not out.sampled_BRT[0, 0, length:].any()
    assert not out.tokens_BRT[0, 0, max(length, tail) :].any()
    return {
        "tokens": [TOKENS[i] for i in out.tokens_BRT[0, 0, tail:length]],
        "sampled": out.sampled_BRT[0, 0, tail:length].astype(int).tolist(),
        "answer": int(out.answer_start_BR[0, 0]) - tail,
        "over": bool(out.over_budget_BR[0, 0]),
        "computed": sum(step[0] for step in out.decode_steps),
    }


def expect(tokens, sampled, answer, over=False) -> dict:
    """One decode step per token after the tail, and one for the tail's own first token."""
    return {
        "tokens": tokens,
        "sampled": sampled,
        "answer": answer,
        "over": over,
        "computed": 1 + len(tokens),
    }


def test_natural_close_over_several_tokens_then_suffix_then_answer():
    found = follow(["<think>", "d", "</thi", "nk>", "e", "\n", "f", "g"])
    assert found == expect(["d", "</thi", "nk>", "\n", "f", "g"], [1, 1, 1, 0, 1, 1], answer=4)


def test_a_token_that_straddles_the_marker_begins_the_answer_without_suffix():
    found = follow(["<think>", "d", "</thi", "nk>b", "e", "f", "g"])
    assert found == expect(["d", "</thi", "nk>b", "e", "f"], [1] * 5, answer=3)


def test_a_broken_marker_is_no_marker():
    found = follow(["<think>", "</thi", "d", "nk>", "<", "e"])
    assert found["over"]
    assert found["tokens"][:4] == ["</thi", "d", "nk>", "<"]


def test_the_budget_forces_the_whole_close():
    """`c</think>\\n`, three tokens, none of them in the loss."""
    found = follow(["<think>", "d", "e", "f", "g", "h", "i", "\n", "k", "l"])
    assert found == expect(
        ["d", "e", "f", "g", "c", "</think>", "\n", "k", "l"],
        [1, 1, 1, 1, 0, 0, 0, 1, 1],
        answer=7,
        over=True,
    )


def test_a_marker_completed_by_the_last_token_of_the_budget_is_natural():
    found = follow(["<think>", "d", "e", "</thi", "nk>", "f", "\n", "k", "l"])
    assert found == expect(
        ["d", "e", "</thi", "nk>", "\n", "k", "l"], [1, 1, 1, 1, 0, 1, 1], answer=5
    )


def test_a_stop_token_ends_the_thought():
    found = follow(["<think>", "d", "<eos>", "e"])
    assert found == expect(["d", "<eos>"], [1, 1], answer=-1 - 2)


def test_a_stop_token_as_the_last_of_the_budget_is_a_stop():
    found = follow(["<think>", "d", "e", "f", "<eos>", "g"])
    assert found == expect(["d", "e", "f", "<eos>"], [1] * 4, answer=-1 - 2)


def test_a_stop_token_ends_the_answer():
    found = follow(["<think>", "</think>", "d", "\n", "<eos>", "e"])
    assert found == expect(["</think>", "\n", "<eos>"], [1, 0, 1], answer=2)


def test_zero_reward_ends_at_the_budget():
    config = dataclasses.replace(SCRIPT_CONFIG, on_budget="zero_reward")
    found = follow(["<think>", "d", "e", "f", "g", "h"], config)
    assert found == expect(["d", "e", "f", "g"], [1] * 4, answer=-1 - 2, over=True)
    closed = follow(["<think>", "</think>", "d", "\n", "f", "g"], config)
    assert closed == expect(["</think>", "\n", "f", "g"], [1, 0, 1, 1], answer=2)


def test_an_empty_slot_decodes_nothing():
    found = follow(["<think>", "d"], valid=False)
    assert (found["tokens"], found["computed"]) == ([], 1)  # the tail but its last token


def test_a_template_without_suffix_goes_from_the_marker_to_the_answer(tiny_model):
    tables = make_tables(formats.parse_template("{{document}}<think>{{thought}}</think>{{answer}}"))
    assert tables.close_length == tables.forced_ids.shape[0] == 1
    passed = {}
    for first in ("</think>", "d"):
        row = lambda x: jnp.asarray([[x]])  # noqa: E731
        keys = jnp.zeros((1, 1, 2), jnp.uint32)
        branches, _ = rollout.start(tiny_model, tables, row(3), row(True), keys, None, 12, 12)
        tokens = [first] * 4 if first == "d" else [first, "e", "f"]
        passed[first] = []
        for token in tokens:
            branches = phases.next_phase(SCRIPT_CONFIG, tables, branches, row(ID[token]))
            passed[first].append(int(branches.phase_BR[0, 0]))
    assert passed["</think>"] == [phases.ANSWER, phases.ANSWER, phases.DONE]
    assert passed["d"] == [phases.THINK] * 3 + [phases.FORCE]
    branches = phases.next_phase(SCRIPT_CONFIG, tables, branches, row(ID["</think>"]))
    assert branches.phase_BR[0, 0] == phases.ANSWER


def test_a_template_with_an_empty_tail_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        make_tables(formats.parse_template("{{document}}{{thought}}</think>{{answer}}"))


@pytest.mark.parametrize(
    "wrong", [{"group_size": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="rollout"):
        dataclasses.replace(SCRIPT_CONFIG, **wrong)


def test_noise_key_depends_on_every_part_of_the_identity():
    """Also between parts of equal value, and on both halves of a 64-bit document id."""
    base = {"seed": 1, "step": 2, "round_": 3, "document": 4, "cut": 5, "sample": 6}
    identities = [base]
    identities += [base | {name: value} for name in base for value in (0, 1, 7, 2**31 - 1)]
    identities += [base | {"document": value} for value in (2**32, 4 + 2**32, 2**63 + 4)]
    identities += [base | {"step": 3, "round_": 2}, base | {"cut": 6, "sample": 5}]
    distinct = {tuple(sorted(identity.items())) for identity in identities}

    def key(seed, step, round_, document, cut, sample):
        # The sample index is the column within its group.
        cut_BR = np.full((1, sample % 16 + 1), cut)
        keys = rollout.branch_keys(seed, step, round_, np.array([document], np.uint64), cut_BR, 16)
        return tuple(np.asarray(keys[0, -1]).tolist())

    distinct = {identity for identity in distinct if dict(identity)["sample"] < 16}
    assert len({key(**dict(identity)) for identity in distinct}) == len(distinct) > 20


def test_noise_depends_on_the_position():
    keys = rollout.branch_keys(0, 0, 0, np.array([1]), np.array([[4]]), 1)[0]
    ids = jnp.arange(40, dtype=jnp.uint32)
    rows = [noise.gumbel(noise.fold(keys, jnp.array([t])), ids)[0] for t in (1, 2, 3)]
    for one, other in itertools.combinations(rows, 2):
        assert (np.asarray(one) != np.asarray(other)).all()


B, S, C, G = 2, 8, 4, 2
R = C * G
BASE = rollout.RolloutConfig(
    group_size=G, think_tokens=9, answer_tokens=1, chunk_tokens=64, temperature=1.3
)
CUTS_BC = np.array([[2, 3, 5, 8], [1, 4, 7, 0]], np.int32)
VALID_BC = np.array([[True] * 4, [True, True, True, False]])
DOCUMENTS_B = np.array([5, 2**40 + 5])


@pytest.fixture(scope="module")
def tables():
    return make_tables()


@pytest.fixture(scope="module")
def trunk_kv(tiny_model, tiny_params):
    tokens = np.random.default_rng(0).integers(0, 40, (B, S))
    positions = np.tile(np.arange(S), (B, 1))
    run = jax.jit(transformer.trunk, static_argnums=0)
    return run(tiny_model, tiny_params, tokens, np.ones_like(tokens), positions)[1]


@pytest.fixture(scope="module")
def roll(tiny_model, tiny_params, tables, trunk_kv):
    """Rollouts that differ from a common base in what is named."""

    def run(config=BASE, rows=slice(None), kv=trunk_kv, **changes):
        arguments = {
            "seed": 3, "step": 4, "document_ids_B": DOCUMENTS_B[rows], "round_": 0,
        } | changes  # fmt: skip
        kv = jax.tree.map(lambda x: x[:, rows], kv)
        sampler = rollout.make_sampler(tiny_model, tiny_params, kv)
        return rollout.rollout(
            tiny_model, config, sampler, tables, CUTS_BC[rows], VALID_BC[rows], **arguments
        )

    return run


@pytest.fixture(scope="module")
def base(roll):
    """One bucket, no compaction, with the probability of a target token recorded."""
    target_BC = np.random.default_rng(1).integers(0, 40, (B, C))
    return roll(target_BC=target_BC), target_BC


@pytest.fixture(scope="module")
def trained(tiny_model, tiny_params, trunk_kv):
    """The trainer's log-probabilities and logits of a rollout's tokens, [B, R, T, ...]."""

    @jax.jit
    def full_logits(params, kv, tokens_BRT, hi_BR):
        hidden, _ = transformer.branch(
            tiny_model, params, kv, tokens_BRT, jnp.zeros_like(hi_BR), hi_BR, hi_BR
        )
        logits = logprob.logits(hidden, transformer.unembedding(tiny_model, params))
        return jnp.pad(logits[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))

    def run(out, temperature):
        hi_BR = np.repeat(CUTS_BC, G, axis=1)
        batch = update.MicroBatch(
            tokens_BRT=out.tokens_BRT,
            weight_BRT=out.sampled_BRT,
            behaviour_BRT=out.log_prob_BRT,
            threshold_BRT=out.threshold_BRT,
            reference_BRT=None,
            advantage_BR=np.zeros((B, R), np.float32),
            hi_BR=hi_BR,
        )
        log_probs = jax.jit(update.branch_log_probs, static_argnums=(0, 1))
        found = log_probs(tiny_model, temperature, tiny_params, trunk_kv, batch).log_prob_M
        found = np.pad(found.reshape(B, R, -1), ((0, 0), (0, 0), (1, 0)))
        return found, np.asarray(full_logits(tiny_params, trunk_kv, out.tokens_BRT, hi_BR))

    return run


def noisy_logits(out, logits_BRTV, config=BASE, seed=3, step=4) -> np.ndarray:
    """Tempered logits plus the noise that the documented identity of each token gives."""
    hi_BR = np.repeat(CUTS_BC, G, axis=1)
    keys = rollout.branch_keys(seed, step, 0, DOCUMENTS_B, hi_BR, G)
    T, ids = out.tokens_BRT.shape[2], jnp.arange(40, dtype=jnp.uint32)

    def row(t):
        return noise.gumbel(noise.fold(keys.reshape(-1, 2), jnp.full(B * R, t)), ids)

    values = jnp.moveaxis(jax.vmap(row)(jnp.arange(T)), 0, 1).reshape(B, R, T, 40)
    return logits_BRTV / config.temperature + np.asarray(values)


def assert_tokens_are_the_argmax_of_their_noise(out, noisy_BRTV):
    """Except where the two best candidates are closer than rounding."""
    chosen = np.take_along_axis(noisy_BRTV, out.tokens_BRT[..., None], -1)[..., 0]
    assert (noisy_BRTV.max(-1) - chosen)[out.sampled_BRT].max() < 1e-5


def assert_same(out, base, noisy_BRTV):
    """The same rollout, but that a near tie may have let a branch take another way."""
    different = out.tokens_BRT != base.tokens_BRT
    same_BR = ~different.any(-1)
    for b, r in np.argwhere(~same_BR):
        t = int(np.argmax(different[b, r]))
        best = np.sort(noisy_BRTV[b, r, t])
        assert best[-1] - best[-2] < 1e-5, (b, r, t)
    assert same_BR.mean() > 0.5
    names = ("sampled_BRT", "best_BRT", "length_BR", "answer_start_BR", "over_budget_BR")
    for name in names:
        found, wanted = getattr(out, name), getattr(base, name)
        np.testing.assert_array_equal(found[same_BR], wanted[same_BR], err_msg=name)
    for name in ("log_prob_BRT", "threshold_BRT"):
        found, wanted = getattr(out, name), getattr(base, name)
        np.testing.assert_allclose(found[same_BR], wanted[same_BR], atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def noisy(base, trained):
    return noisy_logits(base[0], trained(base[0], BASE.temperature)[1])


def test_the_base_rollout_is_a_mixed_one(base):
    """So that the tests below say something: early and late ends, both kinds of close."""
    out, _ = base
    valid_BR = np.repeat(VALID_BC, G, axis=1)
    length = out.length_BR[valid_BR]
    assert length.min() < 8
    assert length.max() >= 14
    assert 0 < out.over_budget_BR[valid_BR].mean() < 1
    assert not out.length_BR[~valid_BR].any()


def test_tokens_follow_from_their_noise(base, noisy):
    """(run seed, step, document, cut, sample, position, vocabulary id) and nothing else."""
    assert_tokens_are_the_argmax_of_their_noise(base[0], noisy)


def test_recorded_target_and_best_are_those_of_the_logits(base, trained):
    out, target_BC = base
    logits = trained(out, BASE.temperature)[1]
    log_p = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    target_BRT1 = np.repeat(target_BC, G, axis=1)[:, :, None, None]
    wanted = np.take_along_axis(log_p, np.broadcast_to(target_BRT1, (*log_p.shape[:3], 1)), -1)
    mask = out.sampled_BRT
    np.testing.assert_allclose(out.target_log_prob_BRT[mask], wanted[..., 0][mask], atol=1e-4)
    ordered = np.sort(logits, -1)
    clear = mask & (ordered[..., -1] - ordered[..., -2] > 1e-4)
    np.testing.assert_array_equal(out.best_BRT[clear], logits.argmax(-1)[clear])


@pytest.mark.parametrize("branch_multiple", [1, R])
def test_buckets_and_compaction_change_nothing(roll, base, noisy, branch_multiple):
    """Chunks of 4 positions; with multiple R no branch is ever compacted away."""
    config = dataclasses.replace(BASE, chunk_tokens=4)
    out = roll(config, branch_multiple=branch_multiple)
    assert_same(out, base[0], noisy)
    assert len(out.decode_steps) > 2
    widths = [branches for _, branches, _ in out.decode_steps]
    assert (widths[-1] < R) == (branch_multiple == 1)
    # The ledger's account: every position once, under a cache that holds it.
    assert sum(step[0] for step in out.decode_steps) == out.length_BR.max() - 1
    assert [size for *_, size in out.decode_steps][1:3] == [6, 12]


def test_batch_order_and_other_documents_change_nothing(
    roll, base, noisy, trunk_kv, tiny_model, tiny_params, tables
):
    """The rows swapped; and another document in the first row, with other cuts."""
    target = {"target_BC": base[1]}  # keeps to the program that is already compiled
    swapped = roll(rows=[1, 0], **target)
    arrays = {name: getattr(swapped, name)[::-1] for name in swapped._fields[:9]}
    assert_same(swapped._replace(**arrays), base[0], noisy)

    foreign = jax.tree.map(lambda x: x.at[:, 0].add(0.5), trunk_kv)
    other = roll(kv=foreign, document_ids_B=np.array([99, DOCUMENTS_B[1]]), **target)
    second = {name: getattr(other, name)[1:] for name in other._fields[:9]}
    wanted = {name: getattr(base[0], name)[1:] for name in other._fields[:9]}
    assert_same(other._replace(**second), base[0]._replace(**wanted), noisy[1:])
    assert (other.tokens_BRT[0] != base[0].tokens_BRT[0]).any()


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 5}, {"round_": 1}])
def test_another_identity_gives_other_tokens(roll, base, change):
    other = roll(target_BC=base[1], **change)
    valid_BR = np.repeat(VALID_BC, G, axis=1)
    assert (other.tokens_BRT != base[0].tokens_BRT).any(-1)[valid_BR].all()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.8, "top_k": 5},
        {"temperature": 0.8, "top_p": 0.7},
        {"temperature": 1.0, "top_k": 12, "top_p": 0.9},
    ],
)
def test_the_sampler_says_what_the_trainer_says(roll, base, trained, settings):
    """Log-probabilities to 1e-4, the sampler's threshold handed on."""
    config = dataclasses.replace(BASE, **settings)
    out = roll(config) if settings else base[0]
    found = trained(out, config.temperature)[0]
    assert out.sampled_BRT.sum() > 20
    assert np.abs(found - out.log_prob_BRT)[out.sampled_BRT].max() < 1e-4
    assert (out.log_prob_BRT[out.sampled_BRT] < -0.05).mean() > 0.5
    truncates = "top_k" in settings or "top_p" in settings
    assert np.isfinite(out.threshold_BRT[out.sampled_BRT]).all() == truncates


def test_greedy_takes_the_most_probable_token(roll):
    out = roll(dataclasses.replace(BASE, temperature=0.0))
    np.testing.assert_array_equal(out.tokens_BRT[out.sampled_BRT], out.best_BRT[out.sampled_BRT])
    assert (out.log_prob_BRT == 0).all()


def test_decoding_writes_its_caches_in_place(tiny_model, tiny_params):
    """A chunk's caches are those it was given, and its loop copies no whole cache."""
    model = tiny_model
    tables = make_tables(formats.parse_template("{{document}}<think>{{thought}}</think>{{answer}}"))
    R, size = 6, 24
    kv = transformer.KeyValues(*[jnp.zeros((2, 1, 8, 2, 8))] * 2)
    hi_BR, live_BR = jnp.full((1, R), 5), jnp.ones((1, R), bool)
    keys = jnp.zeros((1, R, 2), jnp.uint32)
    branches, cache = rollout.start(model, tables, hi_BR, live_BR, keys, None, size, size)
    compiled = rollout.decode.lower(
        model, SCRIPT_CONFIG, decoding.sampling_copy(model, tiny_params), tables,
        decoding.prepare_trunk(model, kv), cache, branches, jnp.int32(0), size, False,
    ).compile()  # fmt: skip
    leaves = jax.tree.leaves(cache)
    aliased = compiled.memory_analysis().alias_size_in_bytes
    assert aliased >= sum(x.nbytes for x in leaves)
    shapes = {f"f32[{','.join(map(str, x.shape))}]" for x in leaves}
    copies = [line for line in compiled.as_text().splitlines() if " copy(" in line]
    assert not [line for line in copies if any(shape in line for shape in shapes)]
