"""Thought ablations: what altering keeps, and a model that says what its thoughts repeat."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import tokenizers
from rpt import (
    config,
    evaluation_ablations,
    evaluation_measure,
    evaluation_positions,
    formats,
    ledger,
    loading,
)
from rpt.model import config as model_config
from rpt.model import transformer

TOKENIZER = tokenizers.ByteTokenizer()
TEMPLATE = formats.parse_template("{{document}}<think>{{thought}}</think>{{answer}}")
RAW = [TOKENIZER.token_bytes(i) for i in range(TOKENIZER.vocab_size)]
NAMES = ("none", "drop", "shuffle", "swap", "truncate", "filler")
# As wide as its vocabulary of the bytes, the special tokens and some padding rows.
MODEL = model_config.ModelConfig(
    vocab_size=264, width=264, num_layers=1, num_heads=1, num_kv_heads=1, head_width=264, ff_width=8
)


@functools.cache
def counting_model() -> loading.Loaded:
    """Says the token that occurs most often in its context, thought included.

    Embeddings are unit vectors, and the only layer attends everything alike: its output counts.
    """
    shapes = jax.eval_shape(lambda: transformer.init(MODEL, jax.random.key(0)))
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: (jnp.ones if path[-1].key == "scale" else jnp.zeros)(x.shape), shapes
    )
    identity = jnp.eye(264)
    params["embedding"] = identity
    attention = params["layers"]["attention"]
    attention["value"] = identity.reshape(1, 264, 1, 264)
    attention["output"] = 100 * identity.reshape(1, 1, 264, 264)
    return loading.Loaded(MODEL, params, TOKENIZER, {})


def subject_of(template: formats.Template = TEMPLATE) -> evaluation_measure.Subject:
    nothing = np.zeros(0, np.int32)
    return evaluation_measure.Subject(counting_model(), RAW, template, nothing, nothing, 24, 2)


def positions_of(documents: int, cuts: range, part: str = "text"):
    return [
        evaluation_positions.Position(part, row, row, 0, cut, 2.0, "")
        for row in range(documents)
        for cut in cuts
    ]


def altered(name, content: str, donor: str = "", seed: int = 0) -> str:
    found = evaluation_ablations.altered(
        name,
        TOKENIZER.encode(content),
        donor=TOKENIZER.encode(donor),
        filler_id=ord("."),
        generator=np.random.default_rng(seed),
    )
    return TOKENIZER.decode(found)


# ---- what altering keeps -------------------------------------------------------------------------


def test_what_is_made_of_a_thought():
    thought = "eve is 4 so fay is 6"
    assert altered("none", thought) == thought
    assert altered("drop", thought) == ""
    assert altered("swap", thought, donor="other") == "other"
    assert altered("truncate", thought) == "eve is 4 s"
    assert altered("filler", thought) == "." * len(thought)
    with pytest.raises(ValueError, match="no ablation 'dorp'"):
        altered("dorp", thought)


def test_a_shuffle_keeps_the_tokens_and_is_fixed_by_its_seed():
    thought = "eve is 4 so fay is 6"
    shuffled = [altered("shuffle", thought, seed=seed) for seed in range(5)]
    assert all(collections.Counter(x) == collections.Counter(thought) for x in shuffled)
    assert len({*shuffled, thought}) == 6
    assert altered("shuffle", thought, seed=3) == shuffled[3]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("thought", ["", "a"])
def test_thoughts_of_hardly_a_token(name, thought):
    assert len(altered(name, thought, donor=thought)) <= len(thought)


def test_a_partner_is_of_the_same_part_and_never_of_the_same_document():
    """Documents of different sizes, numbered alike in both parts, and not in order."""
    found = [
        evaluation_positions.Position(part, document, 0, 0, cut, 2.0, "")
        for part in ("stories", "english")
        for document, cuts in ((7, 5), (2, 40), (9, 1), (4, 20))
        for cut in range(cuts)
    ]
    chosen_P = np.arange(len(found)) % 3 != 1
    partner_P = evaluation_ablations.partners(found, chosen_P, seed=0)
    assert ((partner_P >= 0) == chosen_P).all()
    for p, partner in zip(np.flatnonzero(chosen_P), partner_P[chosen_P], strict=True):
        assert chosen_P[partner]
        assert found[p].part == found[partner].part
        assert found[p].document_id != found[partner].document_id
    assert np.array_equal(partner_P, evaluation_ablations.partners(found, chosen_P, seed=0))
    assert not np.array_equal(partner_P, evaluation_ablations.partners(found, chosen_P, seed=1))


def test_every_position_of_another_document_is_as_likely_a_partner():
    found = [
        evaluation_positions.Position("text", document, 0, 0, cut, 2.0, "")
        for document in range(3)
        for cut in range(2)
    ]
    every = np.ones(6, bool)
    partners = [evaluation_ablations.partners(found, every, seed)[2] for seed in range(200)]
    counts = collections.Counter(partners)
    assert counts.keys() == {0, 1, 4, 5}
    assert min(counts.values()) > 25  # of 50; 4 sigma below


def test_a_swap_within_one_document_is_refused():
    with pytest.raises(ValueError, match="two documents of part 'text'"):
        evaluation_ablations.partners(positions_of(1, range(5)), np.ones(5, bool), 0)


# ---- where a thought ends ------------------------------------------------------------------------


def take_apart(pieces: list[bytes], sampled: int, suffix: str = "") -> tuple[bytes, bytes]:
    """Tokens are pieces; the template's close is the piece '</think>' + suffix."""
    template = formats.parse_template(
        f"{{{{document}}}}?{{{{thought}}}}</think>{suffix}{{{{answer}}}}"
    )
    all_pieces = [*pieces, b"</think>" + suffix.encode()]
    subject = dataclasses.replace(subject_of(template), token_bytes=all_pieces)
    ids, close = np.arange(len(pieces)), np.array([len(pieces)])
    found = evaluation_ablations.take_apart(ids, sampled, subject, close)
    content, ended = (b"|".join(all_pieces[i] for i in x) for x in found)
    return content, ended


@pytest.mark.parametrize(
    ("pieces", "sampled", "suffix", "content", "close"),
    [
        ([b"so", b" 4", b"</think>"], 3, "", b"so| 4", b"</think>"),
        # The own tokens of the marker are kept, and the suffix that was forced behind them.
        ([b"so", b"</", b"think>", b"\n"], 3, "\n", b"so", b"</|think>|\n"),
        ([b"so", b"</think>\n"], 2, "\n", b"so", b"</think>\n"),
        # Tokens across an end would carry the true thought, or the true answer, along.
        ([b"so", b" 4</", b"think>"], 3, "", b"so", b"</think>"),
        ([b"so", b"</", b"think>4"], 3, "", b"so", b"</think>"),
        # The budget ended it: everything sampled is content.
        ([b"so", b" </th", b"</think>", b"\n"], 2, "\n", b"so| </th", b"</think>|\n"),
        ([b"</think>"], 1, "", b"", b"</think>"),
    ],
)
def test_a_thought_is_taken_apart_at_its_close(pieces, sampled, suffix, content, close):
    assert take_apart(pieces, sampled, suffix) == (content, close)


def test_a_token_that_ends_the_text_is_no_thought():
    ids = np.array([ord("s"), ord("o"), TOKENIZER.eos_id])
    for end in (TOKENIZER.eos_id, TOKENIZER.vocab_size + 1):
        ids[-1] = end
        found = evaluation_ablations.take_apart(ids, 3, subject_of(), np.array([1]))
        assert TOKENIZER.decode(found.content) == "so"


# ---- what remains --------------------------------------------------------------------------------

DOCUMENTS = ["aaaaaabaaaaab", "aaaaaacaaaaac"]
CUTS = (6, 12)


def thoughts_of(texts: list[list[str]]) -> evaluation_measure.Thoughts:
    """Texts [P][G] behind the tail; only those with a close have come to an answer."""
    count, group = len(texts), len(texts[0])
    ids_PG = np.full((count, group), None, object)
    sampled_PG, begun_PG = np.zeros((count, group), np.int64), np.zeros((count, group), bool)
    for p, of_position in enumerate(texts):
        for g, text in enumerate(of_position):
            ids_PG[p, g] = TOKENIZER.encode_markup(text)
            sampled_PG[p, g], begun_PG[p, g] = len(ids_PG[p, g]), "</think>" in text
    nothing = np.zeros((count, group))
    names = evaluation_measure.Thoughts._fields
    return evaluation_measure.Thoughts(**dict.fromkeys(names, nothing))._replace(
        ids_PG=ids_PG, thought_tokens_PG=sampled_PG, begun_PG=begun_PG
    )


def measure(thoughts: evaluation_measure.Thoughts, names=NAMES):
    found = [p for p in positions_of(2, range(1, 13)) if p.cut in CUTS]
    rows = [
        evaluation_positions.Row("text", i, 0, TOKENIZER.encode(text), len(text), {})
        for i, text in enumerate(DOCUMENTS)
    ]
    settings = config.EvaluateConfig(ablations=names)
    filler_id = evaluation_ablations.filler_id(settings, TOKENIZER)
    every = np.ones(len(found), bool)
    plan = evaluation_ablations.plan(settings, filler_id, found, every)
    subject = subject_of()
    where = evaluation_measure.sites(rows, found, RAW)
    return evaluation_ablations.measure(plan, subject, where, thoughts, "token", lambda line: None)


def test_an_answer_that_depends_on_the_thought_goes_with_it():
    """The model says what it has read most often: the thought's letter, if there is more of it
    than of the document's; a thought that repeats the true letter is right."""
    good = ["bb" * 10, "cc" * 10]
    texts = [[f"{good[document]}</think>"] * 2 for document in (0, 0, 1, 1)]
    found, spent = measure(thoughts_of(texts))
    remains = {name: answers.reward_PG.mean(axis=1).tolist() for name, answers in found.items()}
    assert remains == {
        "none": [1, 1, 1, 1],
        "drop": [0, 0, 0, 0],
        "shuffle": [1, 1, 1, 1],
        "swap": [0, 0, 0, 0],
        "truncate": [1, 0, 1, 0],  # ten against six, and against eleven
        "filler": [0, 0, 0, 0],
    }
    assert set(found["drop"].predicted_PG.flat) == {b"a"}
    assert set(found["filler"].predicted_PG.flat) == {b"."}
    assert found["swap"].predicted_PG[:, 0].tolist() == [b"c", b"c", b"b", b"b"]
    assert (found["none"].target_prob_PG > 0.5).all()
    assert (found["drop"].target_prob_PG < 0.01).all()
    # One trunk pass, and by name at least a forward of every branch.
    least = ledger.trunk_flops(MODEL, 2, 24, passes=1)
    tokens = sum(len(x) + 2 for x in good) * 4
    assert spent > least + ledger.forward_flops(MODEL, tokens, 24, head=False)


def test_a_thought_without_an_answer_stays_without():
    texts = [["b" * 20, "b" * 20 + "</think>"]] * 2 + [["c" * 20 + "</think>", "c" * 20]] * 2
    found, _ = measure(thoughts_of(texts))
    for answers in found.values():
        assert [row.tolist() for row in answers.predicted_PG == None] == (  # noqa: E711
            [[True, False]] * 2 + [[False, True]] * 2
        )
        assert (answers.reward_PG[answers.predicted_PG == None] == 0).all()  # noqa: E711
    # But another may borrow it.
    assert found["swap"].predicted_PG[:, 1].tolist()[:2] == [b"c", b"c"]


def test_nothing_asked_is_nothing_done():
    assert measure(thoughts_of([["b</think>"]] * 4), names=()) == ({}, 0)


@pytest.mark.parametrize(
    ("opening", "answer_format", "best", "expected"),
    [
        ("", "token", b"B", b"B"),
        ("\n", "token", b"B", b"B"),
        ("", "token", b"<eos>", b""),
        ("\\boxed{", "boxed", b"B", b"B"),
        ("\\boxed{", "boxed", b"}", b""),
        ("\\boxed{", "boxed", b"{", None),
    ],
)
def test_the_answer_is_read_as_that_of_a_true_thought(opening, answer_format, best, expected):
    template = formats.parse_template(
        f"{{{{document}}}}?{{{{thought}}}}</think>{opening}{{{{answer}}}}."
    )
    close = TOKENIZER.encode_markup(f"</think>{opening}")
    found = evaluation_ablations.read_answer(
        subject_of(template), close, RAW.index(best), answer_format
    )
    assert found == expected


# ---- settings ------------------------------------------------------------------------------------


def test_a_filler_is_one_token():
    settings = config.EvaluateConfig(ablations=("filler",), filler=" hm")
    with pytest.raises(ValueError, match=r"evaluate\.filler=' hm' is 3 tokens"):
        evaluation_ablations.filler_id(settings, TOKENIZER)
    one = dataclasses.replace(settings, filler="~")
    assert evaluation_ablations.filler_id(one, TOKENIZER) == ord("~")


def test_an_unknown_ablation_is_one_line():
    given = dataclasses.asdict(config.Config())
    given["evaluate"]["ablations"] = ("drop", "shufle")
    with pytest.raises(
        ValueError, match=r"ablations\[1\] must be one of 'none', .*, not 'shufle'$"
    ):
        config.from_json(given)
