"""The warm-up teaches the form: its branches are well formed, true, and the model's own.

Letters: B documents (trunk rows), C cuts, R branches (one per cut), T branch positions.
"""

import dataclasses
import itertools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies

from data import pipeline, records, tokenizers
from rpt import (
    config,
    experience,
    formats,
    ledger,
    loading,
    predictions,
    rewards,
    rollout,
    scoring,
    sharding,
    warmup,
)
from rpt.model import config as model_config
from rpt.model import transformer

TOKENIZER = tokenizers.ByteTokenizer()
RAW = [TOKENIZER.token_bytes(i) for i in range(TOKENIZER.vocab_size)]
STOP = TOKENIZER.special_ids
MODEL = model_config.ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=24, num_layers=1, num_heads=2, num_kv_heads=1,
    head_width=12, ff_width=24, rope_theta=100.0,
)  # fmt: skip
TOKEN = "Read: {{document}}<think>{{thought}}.</think>\n{{answer}}"
BOXED = "{{document}}<think>{{thought}}</think>\n\\boxed{{{answer}}}."
HEADER = {"token": TOKENIZER.encode("Read: "), "boxed": np.zeros(0, np.int32)}
DOCUMENTS = ["abcabcabcabcabcabcabc", "xyzxyzxyzxyzxyzxyzxyzxyz", "nonononononononono"]
PIECES = [b"<", b"/", b"</", b"</th", b"ink", b"think", b">", b"</think>", b"nk>x", b"a", b"", b"S"]


def task_of(answer_format: formats.AnswerFormat = "token", **train) -> experience.Task:
    text = TOKEN if answer_format == "token" else BOXED
    experiment = config.Config(
        model=MODEL,
        positions=config.PositionsConfig(min_context=3),
        rollout=rollout.RolloutConfig(
            group_size=4,
            think_tokens=10,
            answer_format=answer_format,
            answer_tokens=1 if answer_format == "token" else 4,
            on_budget="zero_reward",
        ),
        train=config.TrainConfig(warmup_cuts_per_document=3, t_multiple=32, **train),
    )
    return experience.Task(MODEL, experiment, TOKENIZER, formats.parse_template(text))


def stream_of(task: experience.Task) -> pipeline.Stream[pipeline.TrunkBatch]:
    return pipeline.trunk_batches(
        [pipeline.Mix(records.from_texts(DOCUMENTS), 1.0, "letters")],
        TOKENIZER,
        batch_size=2,
        seq_len=24,
        header_ids=HEADER[task.config.rollout.answer_format],
        min_context=3,
        seed=0,
    )


def mesh_and_params():
    mesh = sharding.make_mesh(sharding.MeshConfig(), 2)
    fresh = jax.jit(lambda key: transformer.init(MODEL, key))(jax.random.key(0))
    return mesh, loading.place(mesh, MODEL, fresh)


def own_thoughts(length_BC: np.ndarray) -> np.ndarray:
    """The bytes 0, 1, 2, ..., that many of them and then an end of text."""
    position_T = np.arange(12)
    return np.where(position_T < length_BC[..., None], position_T, TOKENIZER.eos_id)


def build(task: experience.Task, thoughts_BC, most_BC, cut_BC, documents, valid_BC=None):
    form = warmup.make_form(task)
    header = len(HEADER[task.config.rollout.answer_format])
    valid_BC = np.ones(cut_BC.shape, bool) if valid_BC is None else valid_BC
    return form, *warmup.well_formed(
        form,
        own_thoughts(thoughts_BC),
        documents,
        header,
        cut_BC + header,
        valid_BC,
        most_BC,
        RAW,
        STOP,
    )


def test_thoughts_are_what_the_model_says_behind_its_context():
    """Greedy continuations are those of plain rows, run anew for every token."""
    _, params = mesh_and_params()
    # Fresh models are unsure of everything; this one has preferences.
    params = jax.tree.map(lambda x: 4 * x, params)
    tokens_BS = np.stack(
        [TOKENIZER.encode("one two three four"), TOKENIZER.encode("a b c d e f g h i?")]
    )
    cut_BC = np.array([[4, 9, 12], [1, 2, 17]], np.int32)

    def trunk(tokens_BS):
        places_BS = np.tile(np.arange(tokens_BS.shape[1], dtype=np.int32), (len(tokens_BS), 1))
        return scoring.score_trunk(MODEL, params, tokens_BS, np.ones_like(tokens_BS), places_BS)

    settings = rollout.RolloutConfig(group_size=1, think_tokens=1, temperature=0.0)
    keys = rollout.branch_keys(0, 0, 0, np.arange(2), cut_BC, 1)
    last_BC = np.take_along_axis(tokens_BS, cut_BC - 1, axis=1)
    _, kv = trunk(tokens_BS)
    found_BRT = warmup.continuations(MODEL, settings, params, kv, last_BC, cut_BC, keys, 4)
    for b, c in np.ndindex(2, 3):
        row = tokens_BS[b, : cut_BC[b, c]].tolist()
        for _ in range(4):
            scores, _ = trunk(np.pad(np.array([row], np.int32), ((0, 0), (0, 24 - len(row)))))
            row.append(int(scores.best_BS[0, len(row)]))
        assert np.asarray(found_BRT[b, c]).tolist() == row[-4:]


@pytest.mark.parametrize("answer_format", ["token", "boxed"])
def test_branches_are_read_as_true_answers(answer_format):
    """By the very code that reads and rewards rollouts."""
    task = task_of(answer_format)
    header = len(HEADER[answer_format])
    documents = [TOKENIZER.encode(text) for text in DOCUMENTS[:2]]
    cut_BC = np.array([[3, 7, 20], [4, 5, 23]])
    lengths_BC, most_BC = np.array([[5, 2, 9], [1, 4, 4]]), np.array([[3, 3, 3], [2, 2, 9]])
    form, branches, length_BR = build(task, lengths_BC, most_BC, cut_BC, documents)
    assert (branches.hi_BR == cut_BC + header).all()
    targets = predictions.targets(documents, header, cut_BC + header, np.ones((2, 3), bool), RAW)
    for (b, r), target in zip(np.ndindex(2, 3), targets, strict=True):
        ids = branches.tokens_BRT[b, r, : length_BR[b, r]].tolist()
        assert ids[: len(form.tail)] == form.tail.tolist()
        after_tail = [RAW[i] for i in ids[len(form.tail) :]]
        ended = after_tail[-1] == b"<eos>"
        assert ended == (answer_format == "boxed"), "only a box is of no fixed length"
        read = formats.read_prediction(
            after_tail[:-1] if ended else after_tail, task.template, answer_format
        )
        assert rewards.prefix_match(read.answer, target) == 1
        thought = b"".join(after_tail).split(task.template.close.encode())[0]
        assert thought == bytes(range(min(lengths_BC[b, r], most_BC[b, r])))
        assert not branches.tokens_BRT[b, r, length_BR[b, r] :].any()


@pytest.mark.parametrize("answer_format", ["token", "boxed"])
def test_loss_is_on_what_the_model_will_sample(answer_format):
    task = task_of(answer_format)
    documents = [TOKENIZER.encode(DOCUMENTS[0])]
    form, branches, length_BR = build(
        task, np.array([[4, 1]]), np.array([[9, 9]]), np.array([[3, 8]]), documents
    )
    weight_BRT = branches.weight_BRT
    assert weight_BRT.sum() == pytest.approx(1)
    assert (branches.advantage_BR == 1).all()
    scale = weight_BRT.max()
    for r, thought in enumerate((4, 1)):
        shares = (weight_BRT[0, r] / scale).tolist()
        answer = form.answer_tokens + len(form.end)
        expected = [0.0] * len(form.tail)
        # The thought and the first token of the close: the choice between going on and closing.
        expected += [warmup.THOUGHT_WEIGHT] * (thought + 1) + [1.0] * (len(form.close) - 1)
        expected += [0.0] * len(form.suffix) + [1.0] * answer
        assert length_BR[0, r] == len(expected)
        expected += [0.0] * (len(shares) - len(expected))
        assert shares == pytest.approx(expected)


def test_slots_without_a_demonstration_are_empty():
    """No cut, no thought, no document left: nothing is trained there."""
    task = task_of()
    documents = [TOKENIZER.encode("abcdef")]
    cut_BC = np.array([[3, 4, 6, 5]])
    valid_BC = np.array([[True, False, True, True]])
    _, branches, length_BR = build(
        task, np.array([[0, 3, 3, 3]]), np.full((1, 4), 9), cut_BC, documents, valid_BC
    )
    assert (length_BR > 0).tolist() == [[False, False, False, True]]
    assert not branches.weight_BRT[0, :3].any()
    assert branches.weight_BRT.sum() == pytest.approx(1)


@hypothesis.given(strategies.lists(strategies.integers(0, len(PIECES) - 1), max_size=10))
def test_own_thought_ends_before_the_marker_and_before_stops(ids):
    """The most tokens that touch neither, and a close behind them is the first one."""
    stop = len(PIECES) - 1
    kept = warmup.own_thought(np.array(ids, np.int64), PIECES, {stop}).tolist()
    allowed = list(itertools.takewhile(lambda i: i != stop, ids))
    limit = b"".join(PIECES[i] for i in allowed).find(formats.MARKER)
    if limit >= 0:
        ends = list(itertools.accumulate(len(PIECES[i]) for i in allowed))
        allowed = [i for i, end in zip(allowed, ends, strict=True) if end <= limit]
    assert kept == allowed
    closed = b"".join(PIECES[i] for i in kept) + formats.MARKER
    assert closed.index(formats.MARKER) == len(closed) - len(formats.MARKER)


def test_form_leaves_room_within_the_budget_of_the_rollout():
    for answer_format, think_tokens in itertools.product(("token", "boxed"), (4, 10, 64)):
        task = task_of(answer_format)
        settings = dataclasses.replace(task.config.rollout, think_tokens=think_tokens)
        experiment = dataclasses.replace(task.config, rollout=settings)
        form = warmup.make_form(dataclasses.replace(task, config=experiment))
        assert 1 <= form.shortest <= form.longest
        assert form.longest + len(form.close) <= think_tokens
        assert form.positions <= rollout.total_positions(settings, task.tables) + len(form.end)


def test_a_budget_without_room_for_a_thought_is_refused():
    task = task_of()
    settings = dataclasses.replace(task.config.rollout, think_tokens=2)
    experiment = dataclasses.replace(task.config, rollout=settings)
    with pytest.raises(ValueError, match=r"rollout\.think_tokens=2 .* needs at least 4"):
        warmup.make_form(dataclasses.replace(task, config=experiment))


def test_warm_up_teaches_to_close_and_to_answer():
    """A model that never answers answers after it; everything executed is in the ledger."""
    task = task_of(warmup_steps=40, warmup_learning_rate=3e-2)
    mesh, before = mesh_and_params()
    after, book = warmup.warm_up(task, mesh, before, stream_of(task), ledger.Ledger())
    assert answer_rate(task, before) < 0.15, "by chance only"
    assert answer_rate(task, after) > 0.5
    assert book.tokens["warmup"] > 40 * 2 * 2 * 24
    assert book.flops["warmup"] == book.training_flops > 0
    assert book.flops_as_rows > 0
    assert book.document_tokens > 0


def test_the_same_stream_gives_the_same_parameters():
    """Bit for bit, and the parameters given are left as they were."""
    task = task_of(warmup_steps=2, warmup_learning_rate=3e-2)
    mesh, given = mesh_and_params()
    untouched = jax.device_get(given)
    first, second = (
        warmup.warm_up(task, mesh, given, stream_of(task), ledger.Ledger())[0] for _ in range(2)
    )
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(untouched), strict=True):
        np.testing.assert_array_equal(a, b)


def answer_rate(task: experience.Task, params) -> float:
    """Of free rollouts at cuts of a batch that the warm-up has not seen."""
    batch = next(stream_of(task))
    _, kv = scoring.score_trunk(
        MODEL, params, batch.tokens_BS, batch.segments_BS, batch.positions_BS
    )
    cut_BC = batch.header_length + np.tile(np.arange(4, 12, dtype=np.int32), (2, 1))
    valid_BC = np.ones((2, 8), bool)
    sampler = rollout.make_sampler(MODEL, params, kv)
    result = rollout.rollout(
        MODEL, task.config.rollout, sampler, task.tables, cut_BC, valid_BC,
        seed=1, step=0, document_ids_B=batch.document_ids_B,
    )  # fmt: skip
    read = predictions.read(result, RAW, set(STOP), task.template, "token", valid_BC, 1)
    return float(np.mean([prediction.answer is not None for prediction in read]))
