"""Tables of an evaluation on hand-made measurements, and which positions stand for a bin."""

import dataclasses
import json

import numpy as np
import pytest

from data import tokenizers
from rpt import config, evaluation, evaluation_positions, rewards
from rpt.model import config as model_config

MODEL = model_config.ModelConfig(
    vocab_size=264, width=32, num_layers=2, num_heads=2, num_kv_heads=1, head_width=16, ff_width=32
)

_PART = (config.SourceConfig("text", "miniature:", 1.0),)


def positions_of(entropies: list[list[float]], part: str = "text"):
    return [
        evaluation_positions.Position(part, row, row, 0, cut, nats, "")
        for row, of_row in enumerate(entropies)
        for cut, nats in enumerate(of_row, 8)
    ]


# ---- which positions -----------------------------------------------------------------------------


def test_each_bin_takes_at_most_its_share_of_a_document_from_within_its_limits():
    rng = np.random.default_rng(0)
    found = positions_of(rng.uniform(0, 3, (6, 60)).tolist())
    entropy_P = np.array([p.bin_entropy for p in found])
    row_P = np.array([p.row for p in found])
    settings = config.EvaluateConfig(
        positions_per_document=7, other_positions_per_document=4, gate_documents=2
    )
    bins = evaluation_positions.choose(found, settings, _PART)
    limits = evaluation_positions.nested_and_disjoint(settings.bins_nats)
    assert set(limits) == {">1.5", ">1.0", ">0.5", "<=0.5", "0.5..1.0", "1.0..1.5"}
    for name, (low, high) in limits.items():
        assert ((entropy_P[bins[name]] > low) & (entropy_P[bins[name]] <= high)).all()
        assert np.bincount(row_P[bins[name]]).tolist() == [7 if name == ">1.5" else 4] * 6
    assert np.array_equal(bins["gate"], row_P < 2)
    again = evaluation_positions.choose(found, settings, _PART)
    assert all(np.array_equal(bins[name], again[name]) for name in bins)
    other = evaluation_positions.choose(found, dataclasses.replace(settings, seed=1), _PART)
    assert not np.array_equal(bins["all"], other["all"])


def test_gated_thinking_is_measured_on_documents_of_each_part_by_its_weight():
    entropies = np.ones((6, 20)).tolist()
    found = positions_of(entropies) + [
        dataclasses.replace(p, part="small", row=p.row + 6) for p in positions_of(entropies)
    ]
    row_P = np.array([p.row for p in found])
    settings = config.EvaluateConfig(gate_documents=4)
    bins = evaluation_positions.choose(
        found, settings, (*_PART, config.SourceConfig("small", "miniature:", 0.3))
    )
    assert sorted(set(row_P[bins["gate"]])) == [0, 1, 2, 3, 6, 7]
    assert bins["gate"].sum() == 6 * 20


def test_the_bins_overlap_so_that_few_positions_serve_all():
    rng = np.random.default_rng(1)
    found = positions_of(rng.uniform(0, 3, (5, 60)).tolist())
    settings = config.EvaluateConfig(gate_documents=0)
    bins = evaluation_positions.choose(found, settings, _PART)
    disjoint = [bins[name] for name in ("<=0.5", "0.5..1.0", "1.0..1.5", ">1.5")]
    union_P = np.logical_or.reduce(disjoint)
    for name in ("all", ">0.5", ">1.0"):
        assert not (bins[name] & ~union_P).any()


def test_rows_are_different_documents_before_they_are_further_windows(tmp_path):
    texts = ["one long text " * 30, "another long one " * 30, "short, but long enough"]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = f"jsonl:{path}?validation=0&test=0&split=train"

    def read(documents: int, weight: float = 1.0):
        part = config.SourceConfig("texts", spec, weight)
        return evaluation_positions.read_rows(
            (part,),
            tokenizers.ByteTokenizer(),
            documents=documents,
            window_tokens=64,
            min_context=8,
            seed=0,
        )

    assert len({row.document_id for row in read(3)}) == 3
    assert len(read(4, 0.5)) == 2
    five = read(5)
    assert len(five) == 5
    assert len({row.document_id for row in five[:3]}) == 3
    assert len({(row.document_id, row.start) for row in five}) == 5


# ---- tables --------------------------------------------------------------------------------------


def measured_of(entropies, direct, thought, bins=None) -> evaluation.Measured:
    """One thought a position; the header's direct predictions are all wrong."""
    count = len(entropies)
    column = np.array(thought, np.float64)[:, None]
    zeros, ones = np.zeros(count), np.ones((count, 1), np.int64)
    return evaluation.Measured(
        part_P=np.array(["text"] * count),
        document_id_P=np.arange(count) // 4,
        cut_P=np.arange(count),
        bins={"gate": np.ones(count, bool), **(bins or {})},
        gate_entropy_P=np.array(entropies, np.float64),
        raw_reward_P=np.array(direct, np.float64),
        raw_prob_P=zeros,
        header_reward_P=zeros,
        header_prob_P=zeros,
        thought_P=np.ones(count, bool),
        sampled_reward_PG=column,
        argmax_reward_PG=column,
        target_prob_PG=column / 2,
        diagnosis_PG=np.where(column == 1, 6, 3).astype(np.int64),
        over_budget_PG=np.zeros((count, 1), bool),
        thought_tokens_PG=ones * 10,
        branch_tokens_PG=ones * 12,
    )


COSTS = evaluation.Costs(MODEL, 1, 1, 32.0)


def test_gating_thinks_above_the_threshold_and_predicts_directly_elsewhere():
    measured = measured_of([0.1, 0.2, 2.0, 3.0], [1, 1, 0, 0], [0, 0, 1, 0])
    every = np.ones(4, bool)
    assert evaluation.values(measured, every, "thought_argmax", 1.0).tolist() == [1, 1, 1, 0]
    assert evaluation.values(measured, every, "thought_argmax", 2.0).tolist() == [1, 1, 0, 0]
    assert evaluation.values(measured, every, "no_think").tolist() == [1, 1, 0, 0]
    found = evaluation.gated_table(measured, "all", COSTS, 0, 1.0)
    assert found is not None
    assert found["reported"]["share"] == 0.5
    assert found["reported"]["thought_tokens_per_document_token"] == 5.0
    assert found["reported"]["thought_argmax_minus_no_think"]["mean"] == 0.25
    assert not found["threshold_chosen_here"]


def test_the_chosen_threshold_lets_a_tenth_think_even_where_thinking_only_hurts():
    rng = np.random.default_rng(0)
    hurt = measured_of(rng.uniform(0, 3, 400), np.ones(400), np.zeros(400))
    found = evaluation.gated_table(hurt, "all", COSTS, 0, None)
    assert found is not None
    assert 0.1 <= found["reported"]["share"] < 0.2
    assert found["reported"]["enough_thinking"]
    assert not found["reported"]["gain_shown"]
    assert max(point["thought_argmax"] for point in found["curve"]) == 1.0  # thinking nowhere


def test_the_chosen_threshold_is_the_most_accurate_and_a_gain_needs_its_share():
    entropy = np.linspace(0, 3, 400)
    helps = entropy > 2.0
    measured = measured_of(entropy, ~helps, helps)
    found = evaluation.gated_table(measured, "all", COSTS, 0, None)
    assert found is not None
    assert 0.28 < found["reported"]["share"] < 0.42
    assert found["reported"]["gain_shown"]
    rarely = evaluation.gated_table(measured, "all", COSTS, 0, 2.9)
    assert rarely is not None
    assert rarely["reported"]["thought_argmax_minus_no_think"]["low"] > 0
    assert not rarely["reported"]["gain_shown"]


def test_the_baseline_is_the_better_context():
    measured = measured_of([1.0] * 4, [1, 0, 0, 0], [0] * 4)
    every = np.ones(4, bool)
    assert evaluation.baseline(measured, every) == "raw"
    better = dataclasses.replace(measured, header_reward_P=np.array([0.0, 1.0, 1.0, 0.0]))
    assert evaluation.baseline(better, every) == "header"
    row = evaluation.table_row(better, every, COSTS, 0)
    assert row is not None
    assert row["baseline"] == "no_think_header"
    assert row["thought_argmax_minus_no_think"]["mean"] == -0.5


@pytest.mark.parametrize(("right", "leak"), [(10, False), (18, False), (20, True)])
def test_noise_predicted_beyond_three_sigma_is_a_leak(right, leak):
    """Of 100 positions 10 are expected and sigma is 3."""
    noise = {"label:noise": np.ones(100, bool)}
    rewards_ = [1] * right + [0] * (100 - right)
    measured = measured_of([1.0] * 100, [0] * 100, rewards_, noise)
    found = evaluation.part_table(measured, "all", COSTS, 0)["leak_check"]
    assert found["sigma"] == pytest.approx(0.03)
    assert found["leak_suspected"] == leak


def test_where_nothing_was_thought_there_is_no_value():
    measured = measured_of([1.0] * 4, [1] * 4, [1] * 4)
    measured = dataclasses.replace(measured, thought_P=np.array([True, True, True, False]))
    with pytest.raises(ValueError, match="not measured"):
        evaluation.values(measured, np.ones(4, bool), "thought_argmax")


def test_diagnosis_categories_are_those_of_the_rewards():
    """An answer is anything from 'wrong' on."""
    answered = [rewards.CATEGORIES[i] for i in evaluation.ANSWERED]
    assert answered == ["wrong", "leading_space", "trailing_space", "right"]


@pytest.mark.parametrize(
    "changes",
    [{"bins_nats": (1.0, 0.5)}, {"thoughts": 0}, {"positions_per_document": 1}],
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match="must"):
        config.EvaluateConfig(**changes)
