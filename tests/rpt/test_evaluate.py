"""Evaluation: which positions, the same byte reward for all, tables that can be recomputed."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from data import tokenizers
from rpt import (
    config,
    evaluate,
    evaluation,
    evaluation_measure,
    evaluation_positions,
    evaluation_records,
    formats,
    loading,
    predictions,
    rollout,
    runs,
)
from rpt.model import config as model_config
from rpt.model import transformer

TOKENIZER = tokenizers.ByteTokenizer()
MODEL = model_config.ModelConfig(
    vocab_size=TOKENIZER.vocab_size + 4,  # some padding rows, as real checkpoints have
    width=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_width=16,
    ff_width=32,
)
SHORT = "miniature:?kind=plain&min_variables=2&max_variables=3&min_questions=1"
STORIES = config.SourceConfig("stories", f"{SHORT}&split=validation", 1.0)
TEST_STORIES = dataclasses.replace(STORIES, spec=f"{SHORT}&split=test")


@functools.cache
def fresh(seed: int) -> loading.Loaded:
    """A random model whose predictions differ between positions."""
    params = jax.jit(lambda key: transformer.init(MODEL, key))(jax.random.key(seed))
    return loading.Loaded(MODEL, jax.tree.map(lambda x: x * 3, params), TOKENIZER, {})


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> config.Config:
    folder = tmp_path_factory.mktemp("settings")
    template = folder / "template.txt"
    template.write_text("Text: {{document}}<think>{{thought}}</think>{{answer}}")
    texts = folder / "corpus.jsonl"
    lines = [f"The number {i} stands before {i + 1}, and {i * i} is its square." for i in range(40)]
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    words = config.SourceConfig("words", f"jsonl:{texts}?split=validation&validation=0.3", 1.0)
    return config.Config(
        model=MODEL,
        data=config.DataConfig(tokenizer="bytes", template=str(template)),
        train=config.TrainConfig(seq_len=96),
        rollout=rollout.RolloutConfig(group_size=8, think_tokens=4),
        evaluate=config.EvaluateConfig(
            validation=(STORIES, words),
            test=(TEST_STORIES,),
            reference="replaced by `use_reference`",
            documents=3,
            gate_documents=1,
            positions_per_document=3,
            other_positions_per_document=2,
            thoughts=2,
            batch_size=4,
            ablations=("none", "drop", "shuffle", "swap", "truncate", "filler"),
        ),
    )


@pytest.fixture(autouse=True)
def use_reference(monkeypatch):
    """The frozen reference is a model in memory; any path names it."""
    monkeypatch.setattr(loading, "load_any", lambda path: fresh(9))


@pytest.fixture(scope="module")
def evaluated(experiment, tmp_path_factory) -> tuple[pathlib.Path, dict]:
    """One evaluation that many tests look at."""
    out = tmp_path_factory.mktemp("arm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_any", lambda path: fresh(9))
        request = evaluate.Request(path="arm-a", out=out)
        return out, evaluate.evaluate(experiment, fresh(0), request, say=lambda line: None)


# ---- which positions -----------------------------------------------------------------------------


def test_all_documents_have_all_eligible_positions_and_labels(evaluated, experiment):
    out, results = evaluated
    file = evaluation_positions.read(out / "validation" / evaluate.POSITIONS)
    assert {p.part for p in file.positions} == {"stories", "words"}
    stories = [p for p in file.positions if p.part == "stories"]
    assert {p.row for p in stories} == {0, 1, 2}
    # Every token from the minimum context on.
    for row in range(3):
        of_row = [p for p in stories if p.row == row]
        assert [p.cut for p in of_row] == list(range(8, of_row[-1].cut + 1))
    assert any(p.label.startswith("answer/") for p in stories)
    assert results["positions"]["eligible"] == len(file.positions)
    assert all(0 < p.bin_entropy < np.log(MODEL.vocab_size) for p in file.positions)


# ---- the positions file --------------------------------------------------------------------------


def test_the_positions_file_is_reused_and_its_hash_tells_when_it_was_altered(
    evaluated, experiment, tmp_path
):
    out, results = evaluated
    shared = tmp_path / "shared.jsonl"
    content = (out / "validation" / evaluate.POSITIONS).read_bytes()
    shared.write_bytes(content)
    request = evaluate.Request(path="arm-b", out=tmp_path / "b", positions=shared)
    other = evaluate.evaluate(experiment, fresh(1), request, say=lambda line: None)
    assert shared.read_bytes() == content
    assert other["positions"]["sha256"] == results["positions"]["sha256"]
    assert other["reference"] == results["reference"]
    assert other["model"]["params_sha256"] != results["model"]["params_sha256"]

    a = evaluation_records.load(out / "validation" / evaluate.PREDICTIONS)
    b = evaluation_records.load(tmp_path / "b" / "validation" / evaluate.PREDICTIONS)
    found = evaluation_records.compare(a, b, ">1.5", mode_a="target_probability", mode_b="no_think")
    mask = a.measured.bins[">1.5"]
    expected = a.measured.target_prob_PG[mask].mean() - max(
        b.measured.raw_reward_P[mask].mean(), b.measured.header_reward_P[mask].mean()
    )
    assert found.mean == pytest.approx(expected)
    assert found.n == mask.sum()

    lines = shared.read_text().splitlines()
    moved = json.loads(lines[5]) | {"bin_entropy": 0.1}
    shared.write_text("\n".join([*lines[:5], json.dumps(moved), *lines[6:]]) + "\n")
    assert evaluation_positions.read(shared).sha256 != results["positions"]["sha256"]
    altered = b._replace(about={**b.about, "positions_sha256": "another"})
    with pytest.raises(ValueError, match="positions_sha256"):
        evaluation_records.compare(a, altered, ">1.5")


@pytest.mark.parametrize("changes", [{"documents": 2}, {"seed": 5}, {"validation": (STORIES,)}])
def test_a_positions_file_of_other_settings_is_refused(evaluated, experiment, tmp_path, changes):
    out, _ = evaluated
    settings = dataclasses.replace(experiment.evaluate, **changes)
    request = evaluate.Request(
        path="a", out=tmp_path, positions=out / "validation" / evaluate.POSITIONS
    )
    with pytest.raises(ValueError, match="was made with another"):
        evaluate.evaluate(dataclasses.replace(experiment, evaluate=settings), fresh(0), request)


def test_other_text_behind_the_same_settings_is_refused(evaluated, experiment, tmp_path):
    out, _ = evaluated
    path = tmp_path / "positions.jsonl"
    first, *rest = (out / "validation" / evaluate.POSITIONS).read_text().splitlines()
    first = json.dumps(json.loads(first) | {"rows_sha256": "of other text"})
    path.write_text("\n".join([first, *rest]) + "\n")
    request = evaluate.Request(path="a", out=tmp_path, positions=path)
    with pytest.raises(ValueError, match="rows_sha256"):
        evaluate.evaluate(experiment, fresh(0), request)


def test_without_file_and_reference_it_says_what_to_do(experiment, tmp_path):
    settings = dataclasses.replace(experiment.evaluate, reference="")
    with pytest.raises(ValueError, match=r"evaluate\.reference"):
        evaluate.evaluate(
            dataclasses.replace(experiment, evaluate=settings),
            fresh(0),
            evaluate.Request(path="a", out=tmp_path),
        )


# ---- what the model says -------------------------------------------------------------------------


def subject_of(experiment, **changes) -> evaluation_measure.Subject:
    found = evaluation_measure.subject(experiment, fresh(0), 64)
    return dataclasses.replace(found, **changes)


def sites_of(subject, texts: list[str], cuts: range) -> evaluation_measure.Sites:
    rows = [
        evaluation_positions.Row("text", i, 0, TOKENIZER.encode(text), len(text), {})
        for i, text in enumerate(texts)
    ]
    found = [
        evaluation_positions.Position("text", i, i, 0, cut, 1.0, "")
        for i in range(len(rows))
        for cut in cuts
    ]
    return evaluation_measure.sites(rows, found, subject.token_bytes)


def test_no_think_counts_another_token_with_the_right_bytes_as_right(experiment):
    """The reward is of bytes: where all tokens share theirs, every prediction is right."""
    subject = subject_of(experiment)
    texts = ["abcdefghijklmnopqrstuvwxyz", "0123456789012345678901234567"]
    distinct, _ = evaluation_measure.no_think(
        subject, sites_of(subject, texts, range(8, 24)), subject.header
    )
    alike = dataclasses.replace(subject, token_bytes=[b"x"] * TOKENIZER.vocab_size)
    same, _ = evaluation_measure.no_think(alike, sites_of(alike, texts, range(8, 24)), alike.header)
    assert distinct.reward_P.mean() < 1
    ended = np.array([p == b"" for p in same.predicted_P])
    assert np.array_equal(same.reward_P, np.where(ended, 0, 1))
    assert not ended.all()


def test_no_think_is_scored_at_the_position_it_predicts(experiment):
    """With the target's bytes in the place of the argmax's own, a shift by one would show."""
    subject = subject_of(experiment)
    text = "the cat sat on the mat and the dog sat on the log"
    where = sites_of(subject, [text], range(1, len(text)))
    found, _ = evaluation_measure.no_think(subject, where, subject.header)
    tokens = np.concatenate([subject.header, TOKENIZER.encode(text)])[None]
    hidden, _ = jax.jit(transformer.trunk, static_argnums=0)(
        MODEL,
        subject.loaded.params,
        tokens,
        np.ones_like(tokens),
        np.arange(tokens.shape[1])[None],
    )
    logits = hidden[0] @ transformer.unembedding(MODEL, subject.loaded.params).T
    probs = np.asarray(jax.nn.softmax(logits, axis=-1))[len(subject.header) : -1]
    target = TOKENIZER.encode(text)[1:]
    np.testing.assert_allclose(
        found.target_prob_P, probs[np.arange(len(target)), target], rtol=1e-3
    )
    assert found.predicted_P == [subject.next_token_bytes(int(b)) for b in probs.argmax(axis=-1)]


def test_thoughts_do_not_depend_on_which_other_positions_are_asked(experiment):
    subject = subject_of(experiment, batch_size=2)
    where = sites_of(
        subject, ["a story of some length, not too long", "another of them " * 2], range(8, 24)
    )
    settings = dataclasses.replace(experiment.rollout, group_size=2)
    every_P = np.ones(32, bool)
    some_P = np.arange(32) % 2 == 0
    every, _ = evaluation_measure.think(subject, where, every_P, settings, 0, lambda line: None)
    some, _ = evaluation_measure.think(subject, where, some_P, settings, 0, lambda line: None)
    for name in ("sampled_PG", "argmax_PG", "thought_tokens_PG", "diagnosis_PG"):
        assert np.array_equal(getattr(every, name)[some_P], getattr(some, name)[some_P]), name
    np.testing.assert_allclose(every.target_prob_PG[some_P], some.target_prob_PG[some_P], rtol=1e-4)
    assert (some.branch_tokens_PG[~some_P] == 0).all()
    assert (every.branch_tokens_PG > 0).all()
    assert ((every.target_prob_PG > 0) == (every.argmax_PG != None)).all()  # noqa: E711


@pytest.mark.parametrize(
    ("answer_format", "best", "expected"),
    [
        ("token", ord("B"), b"B"),
        ("token", TOKENIZER.eos_id, b""),
        ("token", TOKENIZER.vocab_size + 2, b""),
        ("boxed", ord("B"), b"B"),
        ("boxed", ord("}"), b""),
    ],
)
def test_the_argmax_answer_is_the_best_first_token_after_the_same_thought(
    answer_format, best, expected
):
    """It replaces the sampled answer, in a box that is closed behind it; an end says nothing."""
    opening = "" if answer_format == "token" else "\\boxed{"
    template = formats.parse_template(
        f"{{{{document}}}}?{{{{thought}}}}</think>{opening}{{{{answer}}}}."
    )
    row = TOKENIZER.encode_markup(f"?hm</think>{opening}A").tolist()
    tokens = np.array(row, np.int32)[None, None]
    best_BRT = np.zeros_like(tokens)
    best_BRT[0, 0, -1] = best
    nothing = np.zeros(tokens.shape)
    sampled = rollout.Rollout(
        tokens, nothing, nothing, nothing, best_BRT, nothing,
        np.array([[len(row)]]), np.array([[len(row) - 1]]), np.zeros((1, 1), bool), 1, (),
    )  # fmt: skip
    raw = [TOKENIZER.token_bytes(i) for i in range(TOKENIZER.vocab_size)]
    argmax, extended = evaluation_measure.first_token_rollout(
        sampled, raw, {TOKENIZER.eos_id}, answer_format
    )
    (found,) = predictions.read(
        argmax, extended, {TOKENIZER.eos_id}, template, answer_format, np.array([[True]]), 1
    )
    assert found.answer == expected


# ---- tables --------------------------------------------------------------------------------------


def test_results_can_be_recomputed_from_predictions(evaluated, experiment):
    out, results = evaluated
    written = (out / "validation" / evaluate.RESULTS).read_text()
    assert json.loads(written, parse_constant=pytest.fail) == json.loads(json.dumps(results))
    recorded = evaluation_records.load(out / "validation" / evaluate.PREDICTIONS)
    subject = evaluation_measure.subject(experiment, fresh(0), 89)
    settings = results["settings"]
    file = evaluation_positions.read(out / "validation" / evaluate.POSITIONS)
    rows = evaluation_positions.read_rows(
        experiment.evaluate.validation,
        TOKENIZER,
        documents=3,
        window_tokens=settings["window_tokens"],
        min_context=file.about["min_context"],
        seed=0,
    )
    costs = evaluation.Costs(
        MODEL,
        len(subject.raw_prefix),
        settings["header_tokens"],
        float(np.mean([row.window for row in rows])),
    )
    again = evaluation.tables(recorded.measured, costs, settings["seed"], None)
    assert again["parts"] == results["parts"]
    assert again["gated"] == results["gated"]


def test_every_line_of_predictions_holds_its_own_reward(evaluated):
    """From predicted and target bytes alone (here answers are one byte long)."""
    out, results = evaluated
    lines = (out / "validation" / evaluate.PREDICTIONS).read_text().splitlines()[1:]
    modes = {}
    for line in map(json.loads, lines):
        assert line["reward"] == int(line["predicted"] == line["target"])
        assert 0 <= line["prob"] <= 1
        modes[line["mode"]] = modes.get(line["mode"], 0) + 1
    assert modes["no_think_raw"] == modes["no_think_header"] == results["positions"]["eligible"]
    thoughts = 2 * results["positions"]["thought_at"]
    assert modes["thought_sample"] == modes["thought_argmax"] == thoughts


def test_a_true_thought_that_is_read_again_is_answered_alike(evaluated):
    """Teacher-forced over the trunk or decoded: the same answer at every thought."""
    out, results = evaluated
    lines = (out / "validation" / evaluate.PREDICTIONS).read_text().splitlines()[1:]
    by_mode: dict[str, dict] = {}
    for line in map(json.loads, lines):
        by_mode.setdefault(line["mode"], {})[line["position"], line["sample"]] = line
    hard = {line["position"] for line in by_mode["no_think_raw"].values() if ">1.5" in line["bins"]}
    again = by_mode["ablation_none"]
    assert again.keys() == {(p, g) for p in hard for g in range(2)}
    for place, line in again.items():
        true = by_mode["thought_argmax"][place]
        assert (line["predicted"], line["reward"]) == (true["predicted"], true["reward"])
        assert line["prob"] == pytest.approx(true["prob"], rel=1e-4)
    # Which would prove nothing if thoughts made no difference.
    for name in ("drop", "swap", "filler"):
        altered = by_mode[f"ablation_{name}"]
        assert any(altered[at]["predicted"] != again[at]["predicted"] for at in again), name
    for part in ("all", "stories", "words"):
        row = results["parts"][part]["bins"][">1.5"]
        rows = row["ablations"]
        assert list(rows) == ["none", "drop", "shuffle", "swap", "truncate", "filler"]
        assert rows["none"]["accuracy"] == row["thought_argmax"]
        assert rows["none"]["minus_thought_argmax"]["mean"] == 0
        assert rows["drop"]["minus_no_think"]["mean"] == pytest.approx(
            rows["drop"]["accuracy"]["mean"] - row[row["baseline"]]["mean"]
        )


def test_before_and_after_every_thought_the_probability_of_the_truth_is_recorded(evaluated):
    out, results = evaluated
    lines = (out / "validation" / evaluate.PREDICTIONS).read_text().splitlines()[1:]
    before, after = set(), {}
    for line in map(json.loads, lines):
        if line["mode"] == "no_think_header":
            before.add(line["position"])
        elif line["mode"] == "thought_sample":
            after.setdefault(line["position"], []).append(line)
    assert before >= after.keys()
    assert len(after) == results["positions"]["thought_at"]
    for of_position in after.values():
        assert [line["sample"] for line in of_position] == [0, 1]
        for line in of_position:
            assert 0 < line["prob"] < 1 or line["diagnosis"] == "not_closed"
            assert "</think>" not in line["thought"]
            # A whole budget of byte tokens was thought there.
            assert len(line["thought"]) >= 4 or not line["over_budget"]


def test_schema_of_results(evaluated):
    _, results = evaluated
    assert results["schema"] == 1
    assert set(results["parts"]) == {"all", "stories", "words"}
    row = results["parts"]["stories"]["bins"][">1.5"]
    assert row["n"] == 9
    assert row["documents"] == 3
    # Forced to close after four tokens unless it ended before: whole thoughts, whole shares.
    assert 0 < row["mean_thought_tokens"] <= 4
    assert sum(row["diagnosis"].values()) == pytest.approx(1)
    assert row["answer_rate"] <= row["closed_rate"]
    flops = row["flops_per_predicted_token"]
    assert flops["thought"] > 2 * flops["no_think"] > 0
    assert results["parts"]["stories"]["labels"].keys() >= {"answer/1"}
    assert results["parts"]["words"]["labels"] == {}


# ---- the test split ------------------------------------------------------------------------------


def test_test_needs_a_threshold_from_validation_of_the_same_model(evaluated, experiment, tmp_path):
    request = evaluate.Request(path="a", out=tmp_path / "arm", split="test")
    with pytest.raises(ValueError, match="chosen on validation"):
        evaluate.evaluate(experiment, fresh(0), request)
    assert not request.out.exists()
    folder = request.out / "validation"
    folder.mkdir(parents=True)
    runs.write_json(folder / evaluate.RESULTS, evaluated[1])
    with pytest.raises(ValueError, match="another model"):
        evaluate.evaluate(experiment, fresh(1), request)


def test_test_uses_the_given_threshold_and_logs_the_reading(evaluated, experiment, tmp_path):
    _, results = evaluated
    folder = tmp_path / "arm"
    (folder / "validation").mkdir(parents=True)
    runs.write_json(folder / "validation" / evaluate.RESULTS, results)
    request = evaluate.Request(path="a", out=folder, split="test")
    found = evaluate.evaluate(experiment, fresh(0), request, say=lambda line: None)
    assert found["test_reading"] == 1
    for part in ("all", "stories"):
        threshold = results["gated"][part]["reported"]["threshold"]
        assert found["gated"][part]["reported"]["threshold"] == threshold
        assert not found["gated"][part]["threshold_chosen_here"]
    again = dataclasses.replace(request, gate_threshold=1.25)
    found = evaluate.evaluate(experiment, fresh(0), again, say=lambda line: None)
    assert found["gated"]["all"]["reported"]["threshold"] == 1.25
    assert found["test_reading"] == 2
    readings = (tmp_path / evaluate.TEST_READINGS).read_text().splitlines()
    assert [json.loads(line)["params_sha256"] for line in readings] == [
        results["model"]["params_sha256"]
    ] * 2


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workdir", "weights", "step", "message"),
    [
        ("", "", None, "either --workdir"),
        ("a", "b", None, "either --workdir"),
        ("", "b", None, "needs --config"),
        ("nowhere", "", None, "no run directory"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(workdir, weights, step, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate.open_model(workdir, weights, step, None)
