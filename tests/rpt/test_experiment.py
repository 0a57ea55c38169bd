"""The experiment's parts as processes, controls at equal FLOPs, and what counts as shown."""

import dataclasses
import json
import sys
import time

import numpy as np
import pytest

from rpt import config, evaluation, evaluation_records, experiment, experiment_report, pretrain
from rpt.model import config as model_config

MODEL = model_config.ModelConfig(
    vocab_size=264, width=32, num_layers=2, num_heads=2, num_kv_heads=1, head_width=16, ff_width=32
)

# Stands in for a part: writes when it began and ended, and what makes it count as done.
FAKE = """
import json, pathlib, sys, time
root, part = pathlib.Path(sys.argv[1]), sys.argv[2]
began = time.time()
print("at work")
time.sleep(0.1)
if part in sys.argv[3:]:
    sys.exit("broken")
if part.startswith("evaluate_"):
    out = root / "evaluation" / part.removeprefix("evaluate_") / "test" / "results.json"
    value = {}
else:
    out, value = root / part / "summary.json", {"finished": True}
out.parent.mkdir(parents=True)
out.write_text(json.dumps(value))
(root / f"{part}.times").write_text(json.dumps([began, time.time()]))
"""


@dataclasses.dataclass
class Stop:
    received: bool = False


def conductor(root, processes=2, broken=(), stop=None):
    def command(part):
        return [sys.executable, "-c", FAKE, str(root), part, *broken]

    return experiment.Conductor(root, processes, stop or Stop(), command)


def times(root):
    return {p.stem: json.loads(p.read_text()) for p in root.glob("*.times")}


def test_parts_wait_for_what_they_need_and_no_more_run_than_allowed(tmp_path):
    assert conductor(tmp_path).run()
    found = times(tmp_path)
    assert found.keys() == experiment.PARTS.keys()
    for part, needed in experiment.PARTS.items():
        assert all(found[before][1] <= found[part][0] for before in needed)
    at_once = [
        sum(began <= moment < ended for began, ended in found.values())
        for moment, _ in found.values()
    ]
    assert max(at_once) == 2
    assert "at work" in (tmp_path / "logs" / "rpt.log").read_text()


def test_what_is_done_is_not_run_again(tmp_path):
    assert conductor(tmp_path).run()
    before = times(tmp_path)
    (tmp_path / "evaluation" / "ntp" / "test" / "results.json").unlink()
    (tmp_path / "evaluation" / "ntp" / "test").rmdir()
    assert conductor(tmp_path).run()
    after = times(tmp_path)
    assert {part for part in before if before[part] != after[part]} == {"evaluate_ntp"}


def test_a_broken_part_is_one_line_and_the_next_start_goes_on(tmp_path):
    with pytest.raises(ValueError, match=r"part rpt failed; its output is in .*logs.rpt\.log"):
        conductor(tmp_path, broken=("rpt",)).run()
    assert "broken" in (tmp_path / "logs" / "rpt.log").read_text()
    began = times(tmp_path)["base"]
    assert conductor(tmp_path).run()
    assert times(tmp_path)["base"] == began


def test_a_stop_signal_ends_the_parts_and_is_no_failure(tmp_path):
    class Late(Stop):
        """Comes when the first parts are at work."""

        def __init__(self):
            self.after = time.monotonic() + 0.05

        @property
        def received(self):
            return time.monotonic() > self.after

    assert not conductor(tmp_path, stop=Late()).run()
    assert "rpt" not in times(tmp_path)


@pytest.mark.parametrize("part", ["ntp", "mixed_sft"])
def test_a_control_executes_the_flops_of_rpt_rounded_up_to_a_step(tmp_path, part):
    for name, value in {
        "base/model.json": dataclasses.asdict(MODEL),
        "rpt/summary.json": {"ledger": {"training_flops": 987_654_321}},
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(value))
    settings = config.PretrainConfig(batch_size=4, seq_len=32)
    whole = config.Config(experiment=config.ExperimentConfig(ntp=settings, mixed_sft=settings))
    found = experiment.pretraining(whole, tmp_path, part).pretrain
    one = pretrain.step_flops(MODEL, found)
    assert 0 <= found.steps * one - 987_654_321 < one
    assert found.optimizer.decay_steps == found.steps


def test_the_reference_has_another_seed():
    whole = config.Config(seed=2)
    assert experiment.pretraining(whole, None, "reference").seed == 1002
    assert experiment.pretraining(whole, None, "base") == whole


# ---- claims --------------------------------------------------------------------------------------


def recorded(thought: float, direct: float, count: int = 1200) -> evaluation_records.Recorded:
    """Positions of which the first share is answered right, four to a document; all are gated."""
    place_P = np.arange(count)
    thought_P, direct_P = (place_P % 100 < 100 * share for share in (thought, direct))
    ones_PG, zeros_PG = np.ones((count, 1)), np.zeros((count, 1))
    measured = evaluation.Measured(
        part_P=np.full(count, "stories"),
        document_id_P=place_P // 4,
        cut_P=place_P % 4,
        bins={">1.5": place_P >= 0, "gate": place_P >= 0},
        gate_entropy_P=np.full(count, 2.0),
        raw_reward_P=direct_P * 1.0,
        raw_prob_P=direct_P * 1.0,
        header_reward_P=direct_P * 1.0,
        header_prob_P=direct_P * 1.0,
        thought_P=place_P >= 0,
        sampled_reward_PG=thought_P[:, None] * ones_PG,
        argmax_reward_PG=thought_P[:, None] * ones_PG,
        target_prob_PG=thought_P[:, None] * ones_PG,
        diagnosis_PG=zeros_PG.astype(int),
        over_budget_PG=zeros_PG > 0,
        thought_tokens_PG=zeros_PG.astype(int),
        branch_tokens_PG=zeros_PG.astype(int),
    )
    return evaluation_records.Recorded({"positions_sha256": "p", "split": "test"}, measured)


def claim(name: str, passed=True, count=1200, enough_thinking=True, **arms):
    """The claim of that name; arms are (share right with thought, share right without)."""
    shares = {"base": (0.5, 0.1), "rpt": (0.6, 0.1), "ntp": (0.2, 0.2), **arms}
    records = {arm: recorded(*share, count) for arm, share in shares.items()}
    reported = {"threshold": 1.0, "enough_thinking": enough_thinking}
    tables = {arm: {"gated": {"stories": {"reported": reported}}} for arm in shares}
    plan = config.ExperimentConfig(claim_part="stories", least_positions=1000)
    comparisons = experiment_report.comparisons(">1.5", "stories", ())
    words = next(w for w in comparisons if w[0] == name)
    return experiment_report.claim(records, tables, plan, ">1.5", passed, *words)


def test_a_claim_is_the_paired_difference_of_the_named_modes():
    found = claim("rpt_thought_over_base_thought")
    assert found["difference"]["mean"] == pytest.approx(0.1)
    assert found["shown"]
    assert found["n"] == 1200
    assert claim("rpt_thought_over_ntp")["difference"]["mean"] == pytest.approx(0.4)
    assert claim("rpt_gated_over_own_no_think")["difference"]["mean"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"passed": False},
        {"count": 900},
        {"base": (0.6, 0.1)},
        {"base": (0.7, 0.1)},
    ],
)
def test_nothing_is_shown_below_the_gate_on_few_positions_or_without_a_gain(changes):
    assert not claim("rpt_thought_over_base_thought", **changes)["shown"]


def test_gated_thinking_is_only_shown_where_enough_positions_think():
    assert claim("rpt_gated_over_own_no_think")["shown"]
    assert not claim("rpt_gated_over_own_no_think", enough_thinking=False)["shown"]


def test_the_hard_bin_is_taken_apart_by_kind_of_label_without_loss():
    measured = recorded(0.5, 0.1).measured
    place_P = np.arange(1200)
    bins = {
        ">1.5": place_P < 1000,
        "label:answer/1": place_P < 100,
        "label:answer/2": (place_P >= 100) & (place_P < 300),
        "label:noise": place_P >= 1100,  # outside the bin
    }
    found = experiment_report.hard_by_label(
        dataclasses.replace(measured, bins=bins), "stories", ">1.5"
    )
    assert {kind: entry["n"] for kind, entry in found.items()} == {"answer": 300, "unlabelled": 700}
    assert found["unlabelled"]["thought_argmax"] == pytest.approx(0.5)
    assert found["answer"]["no_think"] == pytest.approx(0.1)
