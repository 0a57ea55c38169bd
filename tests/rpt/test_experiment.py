"""The parts of an experiment: which there are, with which config, and running them as processes."""

import dataclasses
import json
import sys
import time

import pytest

from data import tokenizers
from rpt import (
    config,
    evaluation_positions,
    experiment_conductor,
    experiment_config,
    experiment_plan,
    pretrain,
)
from tests.rpt import fixture_pieces
from tests.rpt.fixture_pieces import MODEL, arm, claim, plan

Change = experiment_config.Change

# Stands in for a part: writes when it began and ended, which makes it count as done.
FAKE = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[1]) / f"{sys.argv[2]}.times"
began = time.time()
print("at work")
time.sleep(0.1)
if sys.argv[2] in sys.argv[3:]:
    sys.exit("broken")
path.parent.mkdir(exist_ok=True)
path.write_text(json.dumps([began, time.time()]))
"""


@dataclasses.dataclass
class Stop:
    received: bool = False


def whole(**fields) -> config.Config:
    text = (config.SourceConfig("stories", "miniature:?split=test", 1.0),)
    return config.Config(
        model=MODEL, experiment=plan(**fields), evaluate=config.EvaluateConfig(test=text)
    )


def run(root, processes=2, broken=(), stop=None, is_done=None, **fields):
    parts = experiment_plan.parts(whole(**fields))
    conductor = experiment_conductor.Conductor(
        root,
        parts,
        is_done=is_done or (lambda part: (root / f"{part.name}.times").is_file()),
        command=lambda name: [sys.executable, "-c", FAKE, str(root), name, *broken],
        processes=processes,
        stop=stop or Stop(),
    )
    return conductor.run()


def times(root):
    found = {p.relative_to(root).with_suffix(""): p for p in root.rglob("*.times")}
    return {name.as_posix(): json.loads(path.read_text()) for name, path in found.items()}


# ---- processes -----------------------------------------------------------------------------------


def test_parts_wait_for_what_they_need_and_no_more_run_than_allowed(tmp_path, capsys):
    assert run(tmp_path, seeds=(4, 1))
    found, parts = times(tmp_path), experiment_plan.parts(whole(seeds=(4, 1)))
    assert found.keys() == parts.keys()
    for name, part in parts.items():
        assert all(found[before][1] <= found[name][0] for before in part.needs)
    at_once = [
        sum(began <= moment < ended for began, ended in found.values())
        for moment, _ in found.values()
    ]
    assert max(at_once) == 2
    assert found["seed4/base"][0] < found["seed1/base"][0]
    assert "at work" in (tmp_path / "seed1" / "logs" / "rpt.log").read_text()
    lines = [line for line in capsys.readouterr().out.splitlines() if "parts done" in line]
    assert lines[-1].startswith(f"{len(parts)} of {len(parts)} parts done")


def test_what_is_done_is_not_run_again(tmp_path):
    assert run(tmp_path)
    before = times(tmp_path)
    (tmp_path / "evaluate_ntp.times").unlink()
    assert run(tmp_path)
    after = times(tmp_path)
    assert {part for part in before if before[part] != after[part]} == {"evaluate_ntp"}


def test_what_was_made_of_an_arm_is_looked_at_again_when_the_arm_is_made_anew(tmp_path):
    assert run(tmp_path)
    before = times(tmp_path)
    (tmp_path / "rpt.times").unlink()

    def is_done(part):
        """An evaluation must be younger than its arm, if that is there."""
        found = times(tmp_path)
        if part.name not in found or part.kind != "evaluate" or part.arm not in found:
            return part.name in found
        return found[part.name][0] >= found[part.arm][1]

    assert run(tmp_path, is_done=is_done)
    after = times(tmp_path)
    assert {part for part in before if before[part] != after[part]} == {"rpt", "evaluate_rpt"}


def test_a_broken_part_takes_along_only_what_needs_it_and_the_next_start_goes_on(tmp_path):
    with pytest.raises(ValueError, match=r"part rpt failed; its output is in .*logs.rpt\.log"):
        run(tmp_path, broken=("rpt",))
    assert "broken" in (tmp_path / "logs" / "rpt.log").read_text()
    before = times(tmp_path)
    assert before.keys() == {"base", "reference", "positions", "evaluate_base"}
    assert run(tmp_path)
    assert {name: times(tmp_path)[name] for name in before} == before


def test_a_stop_signal_ends_the_parts_and_is_no_failure(tmp_path):
    class Late(Stop):
        """Comes when the first parts are at work."""

        def __init__(self):
            self.after = time.monotonic() + 0.05

        @property
        def received(self):
            return time.monotonic() > self.after

    assert not run(tmp_path, stop=Late())
    assert "rpt" not in times(tmp_path)


def test_what_is_left_is_estimated_from_the_same_part_of_other_seeds_then_from_its_kind():
    parts = experiment_plan.parts(whole(seeds=(0, 1)))
    done = {name for name in parts if name.startswith("seed0/")}
    finished = dict.fromkeys(done, 10.0) | {"seed0/base": 100.0, "seed0/rpt": 50.0}
    left = experiment_conductor.seconds_left(parts, done, {}, finished, 1)
    assert left == sum(finished.values())
    running = {"seed1/base": 60.0, "seed1/rpt": 90.0}  # the second takes longer than expected
    assert (
        experiment_conductor.seconds_left(parts, done, running, finished, 2)
        == (left - 60.0 - 50.0) / 2
    )
    alone = experiment_conductor.seconds_left(
        {name: parts[name] for name in ("seed0/rpt", "seed0/rpt_rlvr")},
        {"seed0/rpt"}, {}, {"seed0/rpt": 50.0}, 1,
    )  # fmt: skip
    assert alone == 50.0
    assert experiment_conductor.seconds_left(parts, set(), {}, {}, 1) is None


def test_durations_are_for_people():
    found = [experiment_conductor.duration(s) for s in (50.4, 60, 3599, 3661, 11100)]
    assert found == ["50 s", "1 min", "1 h 00 min", "1 h 01 min", "3 h 05 min"]


# ---- which parts there are -----------------------------------------------------------------------


def test_an_arm_comes_after_what_it_needs_else_in_its_own_order():
    names = list(experiment_plan.parts(whole()))
    trained = [name for name in names if not name.startswith("evaluate_")]
    assert trained == ["base", "reference", "positions", "rpt", "ntp", "rpt_rlvr"]
    assert names.index("evaluate_base") == names.index("positions") + 1
    assert "evaluate_reference" not in names
    parts = experiment_plan.parts(whole(seeds=(0, 7)))
    assert list(parts) == [f"seed{seed}/{name}" for seed in (0, 7) for name in names]
    assert parts["seed7/ntp"].needs == ("seed7/base", "seed7/rpt")
    assert parts["seed7/evaluate_ntp"].needs == ("seed7/ntp", "seed7/positions")


@pytest.mark.parametrize("name", ["fetch:smollm2", "/models/a", "./a.gguf"])
def test_a_checkpoint_may_be_the_reference_and_the_positions_come_first(name, tmp_path):
    given = whole(reference=name, claims=())
    parts = experiment_plan.parts(given)
    assert next(iter(parts)) == "positions"
    assert parts["positions"].needs == ()
    assert list(parts).index("evaluate_base") == list(parts).index("base") + 1
    assert parts["evaluate_base"].needs == ("base", "positions")
    rpt = given.experiment.arm("rpt")
    for of_arm in (rpt, None):
        settings = experiment_plan.evaluation_config(given, tmp_path, of_arm)
        assert settings.evaluate.reference == name
    by_arm = experiment_plan.evaluation_config(whole(), tmp_path, rpt)
    assert by_arm.evaluate.reference == str(tmp_path / "reference")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": (*fixture_pieces.ARMS, arm("rpt"))}, "'rpt' is there twice"),
        ({"arms": (*fixture_pieces.ARMS, arm("x", init="bse"))}, "arm x: init='bse' is no arm"),
        ({"arms": (*fixture_pieces.ARMS, arm("x", flops_of="y"))}, "flops_of='y' is no arm"),
        (
            {"arms": (*fixture_pieces.ARMS, arm("x", init="y"), arm("y", flops_of="x"))},
            "circle: x, y",
        ),
        (
            {"reference": "proxy"},
            r"reference='proxy' is no arm \(these are base, .*\) and no checkpoint \('fetch:NAME'",
        ),
        ({"reference": ""}, "reference='' is no arm"),
        ({"shown_depth": -1}, "shown_depth must not be negative"),
        ({"seeds": (0, 1, 0)}, "seeds must differ; 0 is there twice"),
        (
            {"claims": (claim("rpt", "gated", "reference", "gated"),)},
            "'reference' is no evaluated arm; these are base, ntp, rpt, rpt_rlvr",
        ),
        ({"claims": 2 * fixture_pieces.CLAIMS[:1]}, "names of claims must differ"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        plan(**fields)


@pytest.mark.parametrize("name", ["evaluation", "seed3", "evaluate_x", "a/b", "", "pieces"])
def test_arms_have_names_that_nothing_else_has(name):
    with pytest.raises(ValueError, match="cannot be the name of an arm"):
        arm(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": (), "claims": (), "reference": ""}, "needs config.experiment.arms"),
        ({"claim_part": "novels"}, "claim_part='novels' is not evaluated; choose one of stories"),
        (
            {"claims": (claim("rpt", "gated", "rpt", "no_think", part="novels"),)},
            "part='novels' is not evaluated; choose one of all, stories",
        ),
        (
            {"claims": (claim("rpt", "gated", "rpt", "no_think", bin=">2"),)},
            r"bin='>2' is not evaluated; choose one of all, gate, asked, >1\.5",
        ),
        (
            {
                "arms": (
                    *fixture_pieces.ARMS,
                    arm("lean", changes=(Change("evaluate.gate_documents", 0),)),
                ),
                "claims": (claim("rpt", "gated", "lean", "no_think", bin="gate"),),
            },
            "about gated thinking, but arm lean has evaluate.gate_documents=0",
        ),
    ],
)
def test_what_would_be_missed_in_the_end_is_asked_for_before_the_first_part(fields, message):
    with pytest.raises(ValueError, match=message):
        experiment_plan.check(whole(**fields))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("positions.mod", "random", "arm x: config.positions.mod is no field"),
        ("positions.mode.x", "random", "config.positions.mode.x is no field"),
        ("position", {}, "config.position is no field"),
        ("positions.mode", "best", "config.positions.mode must be one of 'entropy', 'random'"),
        ("train.steps", "many", "config.train.steps must be of type int"),
        ("pretrain", {"step": 3}, "config.pretrain.step is no field"),
    ],
)
def test_a_change_that_the_config_refuses_is_named_before_the_first_part(path, value, message):
    changed = arm("x", changes=(Change(path, value),))
    with pytest.raises(ValueError, match=message):
        experiment_plan.check(whole(arms=(*fixture_pieces.ARMS, changed)))


# ---- configs of arms -----------------------------------------------------------------------------


def test_changes_are_applied_in_their_order_and_a_section_gets_its_defaults():
    mixture = [["stories", "miniature:?", 1.0]]
    changed = arm(
        "x",
        seed_offset=5,
        changes=(
            Change("positions.mode", "random"),
            Change("pretrain", {"mixture": mixture, "steps": 7}),
            Change("pretrain.steps", 8),
        ),
    )
    given = dataclasses.replace(whole(), seed=2, pretrain=config.PretrainConfig(batch_size=64))
    found = experiment_plan.arm_config(given, changed)
    assert found.positions.mode == "random"
    assert found.pretrain == config.PretrainConfig(
        mixture=(config.SourceConfig("stories", "miniature:?", 1.0),), steps=8
    )
    assert found.seed == 7
    assert found.experiment == experiment_config.ExperimentConfig()  # others may change
    assert found.train == given.train


def test_a_plan_survives_its_file_whatever_is_changed():
    arms = (arm("reference"), arm("x", changes=(Change("pretrain", {"mixture": [["a", "b", 1]]}),)))
    given = whole(arms=arms, claims=())
    assert config.from_json(json.loads(json.dumps(dataclasses.asdict(given)))) == given
    assert hash(given) == hash(whole(arms=arms, claims=()))


def test_a_control_executes_the_flops_of_another_arm_times_a_factor_rounded_up(tmp_path):
    for name, value in {
        "base/model.json": dataclasses.asdict(MODEL),
        "rpt/summary.json": {"ledger": {"training_flops": 987_654_321}},
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(value))
    given = dataclasses.replace(whole(), pretrain=config.PretrainConfig(batch_size=4, seq_len=32))
    found = experiment_plan.training_config(given, tmp_path, given.experiment.arm("ntp")).pretrain
    one = pretrain.step_flops(MODEL, found)
    assert 0 <= found.steps * one - 2 * 987_654_321 < one
    assert found.optimizer.decay_steps == found.steps


def test_each_seed_is_an_experiment_that_stands_alone(tmp_path):
    given = whole(seeds=(4, 1))
    alone = experiment_plan.of_seed(given, 1)
    assert alone.seed == alone.evaluate.seed == 1
    assert experiment_plan.of_seed(alone, 1) == alone
    assert experiment_plan.parts(alone)["rpt"].root(tmp_path) == tmp_path
    assert experiment_plan.parts(given)["seed1/rpt"].root(tmp_path) == tmp_path / "seed1"
    (reference,) = (a for a in given.experiment.arms if a.name == "reference")
    assert experiment_plan.training_config(alone, tmp_path, reference).seed == 1001
    rpt = experiment_plan.training_config(alone, tmp_path, given.experiment.arm("rpt"))
    assert rpt.train.init == str(tmp_path / "base")


def test_every_seed_is_evaluated_on_documents_of_its_own():
    given, tokenizer = whole(seeds=(4, 1)), tokenizers.load("bytes")
    documents = []
    for seed in (4, 1):
        settings = experiment_plan.of_seed(given, seed)
        arms = settings.experiment.arms
        evaluates = [experiment_plan.arm_config(settings, arm).evaluate for arm in arms]
        assert {evaluate.seed for evaluate in evaluates} == {seed}  # the reference's, too
        rows = evaluation_positions.read_rows(
            evaluates[0].test, tokenizer, documents=20, window_tokens=64, min_context=1, seed=seed
        )
        documents.append({row.document_id for row in rows})
    assert len(documents[0]) == 20
    assert documents[0].isdisjoint(documents[1])
