"""What an experiment's directory holds, and whether it belongs together; nothing is trained."""

import dataclasses
import hashlib
import json

import pytest

from rpt import config, experiment_config, experiment_pieces, experiment_plan, experiment_state
from tests.rpt.fixture_pieces import MODEL, piece, plan

EVALUATED = ("base", "ntp", "rpt", "rpt_rlvr")
ABOUT = {"documents": 9, "seed": 0, "mixture": [["stories", "miniature:?split=test", 1.0]]}


def whole(split="test", **evaluate) -> config.Config:
    (mixture,) = (config.SourceConfig(*part) for part in ABOUT["mixture"])
    settings = {"validation": (mixture,), "test": (mixture,), "documents": 9, **evaluate}
    return config.Config(
        model=MODEL,
        experiment=plan(split=split),
        evaluate=config.EvaluateConfig(**settings),
        pretrain=config.PretrainConfig(batch_size=4, seq_len=32),
    )


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def train(root, settings, name, digest, time="2026-01-01T00:00:00+0000", flops=10**9):
    """What a run leaves behind that was trained as the plan says."""
    arm = settings.experiment.arm(name)
    init = experiment_plan.summary(root, arm.init)["params_sha256"] if arm.init else ""
    planned = experiment_plan.training_config(settings, root, arm)
    write(root / name / "config.json", dataclasses.asdict(planned))
    write(root / name / "model.json", dataclasses.asdict(MODEL))
    write(root / name / "run.json", [{"time": time, "init_params_sha256": init}])
    summary = {"finished": True, "params_sha256": digest, "ledger": {"training_flops": flops}}
    write(root / name / "summary.json", summary)


def evaluate(root, settings, name):
    """The piece of an arm as it is now, at the positions as they are now."""
    path = experiment_state.positions_path(root, settings.experiment.split)
    made = piece(settings.experiment, name)
    of = made.content["evaluation"]
    of["params_sha256"] = experiment_plan.summary(root, name)["params_sha256"]
    of["positions_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    known = dataclasses.asdict(settings.evaluate)
    of["settings"] = {name: known[name] for name in ("thoughts", "bins_nats", "gate_documents")}
    experiment_pieces.save(experiment_pieces.path(root, name), made.content)


def positions(root, reference="reference", **changes):
    about = {"version": 1, **ABOUT, **changes, "reference": {"params_sha256": reference}}
    for split in ("validation", "test"):
        write(experiment_state.positions_path(root, split), about)


@pytest.fixture
def root(tmp_path):
    made(tmp_path, whole())
    return tmp_path


def made(root, settings):
    for name in ("base", "reference", "rpt", "ntp", "rpt_rlvr"):
        train(root, settings, name, name)
    positions(root)
    for name in EVALUATED:
        evaluate(root, settings, name)


def check(root, settings=None, name=""):
    settings = settings or whole()
    parts = experiment_plan.parts(settings)
    chosen = experiment_state.needed(parts, name) if name else parts.values()
    experiment_state.check(settings, root, chosen)


def undone(root, settings=None):
    settings = settings or whole()
    parts = experiment_plan.parts(settings)
    return {n for n, part in parts.items() if not experiment_state.is_done(settings, root, part)}


def test_what_was_made_in_order_is_done_and_belongs_together(root):
    assert not undone(root)
    check(root)
    train(root, whole(), "base", "base")  # anew, and it came out the same
    check(root)


@pytest.mark.parametrize(
    ("retrained", "first", "away"),
    [
        ("base", "rpt", ("ntp", "rpt", "rpt_rlvr")),
        ("rpt", "rpt_rlvr", ("rpt_rlvr",)),
    ],
)
def test_what_began_from_an_arm_that_was_trained_anew_is_refused(root, retrained, first, away):
    train(root, whole(), retrained, "another")
    assert undone(root) == {f"evaluate_{retrained}"}
    listed = ", ".join(str(root / name) for name in away)
    message = f"{first} began from other parameters than {root / retrained} has now; move {listed} "
    with pytest.raises(ValueError, match=message + "away to train anew"):
        check(root)
    with pytest.raises(ValueError, match=message):  # before it is built upon
        check(root, name="evaluate_rpt_rlvr")
    check(root, name="evaluate_base")  # has nothing to do with it
    for name in away:
        (root / name / "run.json").unlink()
        (root / name / "summary.json").unlink()
    check(root)
    assert set(away) < undone(root)


def test_a_run_that_has_not_ended_is_refused_as_well_and_every_start_counts(root):
    starts = json.loads((root / "rpt" / "run.json").read_text())
    (root / "rpt" / "summary.json").unlink()
    write(root / "rpt" / "run.json", [*starts, {**starts[0], "init_params_sha256": "another"}])
    with pytest.raises(ValueError, match="rpt began from other parameters"):
        check(root, name="rpt")


def test_a_run_without_a_record_cannot_have_begun_from_one_that_began_later(root):
    for day, refused in (("02", False), ("03", False), ("04", True)):
        train(root, whole(), "base", "another", time=f"2026-01-{day}T00:00:00+0000")
        for name in ("rpt", "ntp"):
            write(root / name / "run.json", [{"time": "2026-01-03T01:00:00+0100"}])
        if refused:
            with pytest.raises(ValueError, match="rpt began from other parameters"):
                check(root)
        else:
            check(root)


def test_a_control_of_another_budget_is_refused(root):
    train(root, whole(), "rpt", "rpt", flops=2 * 10**9)
    with pytest.raises(ValueError, match=r"ntp was trained with .*config.pretrain.*steps differs"):
        check(root)


def test_positions_of_another_reference_or_other_documents_are_refused(root):
    train(root, whole(), "reference", "another")
    with pytest.raises(ValueError, match=r"made with another .*reference than there is now; put"):
        check(root)
    train(root, whole(), "reference", "reference")
    check(root)
    with pytest.raises(ValueError, match=r"made with another config.evaluate's documents than"):
        check(root, whole(documents=10))


CHANGES = {"thoughts": 2, "gate_documents": 5, "bins_nats": (0.5, 1.0)}


@pytest.mark.parametrize("name", CHANGES)
def test_test_is_not_read_again_because_a_setting_has_changed(root, name):
    changed = whole(**{name: CHANGES[name]})
    assert not undone(root, changed)
    with pytest.raises(ValueError, match=f"base has read test .*config.evaluate.{name} differs"):
        check(root, changed)
    check(root, whole(batch_size=3))  # what changes no answer


@pytest.mark.parametrize("name", CHANGES)
def test_validation_is_read_again_when_a_setting_has_changed(tmp_path, name):
    made(tmp_path, whole("validation"))
    assert not undone(tmp_path, whole("validation"))
    changed = whole("validation", **{name: CHANGES[name]})
    assert undone(tmp_path, changed) == {f"evaluate_{arm}" for arm in EVALUATED}
    check(tmp_path, changed)


def test_an_arm_with_settings_of_its_own_is_compared_with_these(root):
    lean = experiment_config.Change("evaluate.gate_documents", 0)
    arms = tuple(
        dataclasses.replace(arm, changes=(lean,)) if arm.name == "rpt_rlvr" else arm
        for arm in whole().experiment.arms
    )
    changed = dataclasses.replace(whole(), experiment=plan(arms=arms))
    with pytest.raises(ValueError, match=r"rpt_rlvr has read test .*gate_documents differs"):
        check(root, changed)


def test_an_evaluation_at_other_positions_is_not_mixed_with_the_rest(root):
    positions(root, remark="the same documents, other entropies")
    with pytest.raises(ValueError, match=r"read test with .*positions_test.jsonl differs"):
        check(root)


def test_pieces_alone_are_done_whatever_is_not_here(root):
    for name in (*EVALUATED, "reference"):
        (root / name / "summary.json").unlink()
    for split in ("validation", "test"):
        experiment_state.positions_path(root, split).unlink()
    assert {f"evaluate_{name}" for name in EVALUATED}.isdisjoint(undone(root))
    check(root)


def test_results_without_a_piece_are_used_if_they_are_of_this_arm_and_these_settings(root):
    part = experiment_plan.parts(whole())["evaluate_rpt"]
    of = experiment_pieces.read(experiment_pieces.path(root, "rpt")).evaluation
    table = {
        "model": {"params_sha256": "rpt"},
        "positions": {"sha256": of["positions_sha256"]},
        "settings": of["settings"],
    }
    for split in ("validation", "test"):
        assert not experiment_state.is_measured(whole(), root, part, split)
        write(root / "evaluation" / "rpt" / split / "results.json", table)
        assert experiment_state.is_measured(whole(), root, part, split)
    other = whole(thoughts=2)
    assert not experiment_state.is_measured(other, root, part, "validation")
    with pytest.raises(ValueError, match="has read test with other settings"):
        experiment_state.is_measured(other, root, part, "test")
    train(root, whole(), "rpt", "another")
    assert not experiment_state.is_measured(other, root, part, "test")
