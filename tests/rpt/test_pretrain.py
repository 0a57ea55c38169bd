"""Stage 0: the loss goes down, the gate decides when it ends, and stopping changes nothing."""

import json
import pathlib
import shutil

import pytest

from rpt import config, ledger, loading, pretrain
from tests.rpt import tiny_experiment

GATE = {
    "pretrain.gate.mixture": (("stories", "miniature:?kind=plain&split=validation", 1.0),),
    "pretrain.gate.labels": ("answer/1", "answer/2"),
    "pretrain.gate.first_step": 4,
    "pretrain.gate.every_steps": 4,
    "pretrain.gate.max_steps": 10,
    "pretrain.gate.documents": 2,
    "pretrain.optimizer.decay_steps": 3,
    "train.seq_len": 320,  # reaches the stories' answers
}


def experiment(**changes) -> config.Config:
    """The tiny experiment, with few checkpoints, which cost more here than steps; changes are by
    dotted names."""
    found = tiny_experiment.get_config()
    found.logging.checkpoint_every_steps = 12
    found.update_from_flattened_dict(changes)
    return config.from_config_dict(found)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[pathlib.Path, dict]:
    """24 steps: 12 of the opening mixture, a decay over the last 4; checkpoints at 12 and 24."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    return folder, pretrain.pretrain(experiment(), folder)


def lines(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(folder: pathlib.Path, found: dict, wanted: tuple[pathlib.Path, dict]) -> None:
    assert lines(folder) == lines(wanted[0])
    times = {"wall_seconds": 0, "goodput": {}}
    assert {**found, **times} == {**wanted[1], **times}


def test_the_loss_goes_down_and_every_step_is_logged(uninterrupted):
    folder, summary = uninterrupted
    found = lines(folder)
    assert [line["step"] for line in found] == list(range(1, 25))
    assert found[0]["ntp_nats"] > 5  # ln 260 = 5.56
    assert found[-1]["ntp_nats"] < 3
    factors = [line["learning_rate_factor"] for line in found]
    assert factors[:3] == [0.5, 1, 1]
    assert factors[19:] == pytest.approx([1, 0.775, 0.55, 0.325, 0.1])
    assert summary["finished"]
    assert summary["metrics"] == {k: v for k, v in found[-1].items() if k != "step"}
    assert summary["ledger"]["training_flops"] == summary["ledger"]["flops"]["update"]
    model = loading.load_run(folder).model
    steps_flops = 24 * ledger.trunk_flops(model, 4, 64, passes=3)
    assert (
        summary["ledger"]["training_flops"] == steps_flops == summary["metrics"]["training_flops"]
    )


@pytest.mark.parametrize("stop_at", [5, 17])
def test_stopped_is_uninterrupted(uninterrupted, tmp_path, stop_at):
    """Within the opening mixture, and behind it."""
    run = tmp_path / "run"
    stopped = pretrain.pretrain(experiment(), run, stop=tiny_experiment.StopAfter(stop_at))
    assert (stopped["step"], stopped["finished"]) == (stop_at, False)
    assert (stopped["data"]["main"]["windows"] > 0) == (stop_at > 12)
    assert_same_run(run, pretrain.pretrain(experiment(), run), uninterrupted)


def test_lost_steps_are_run_again(uninterrupted, tmp_path):
    """Behind the last checkpoint, as a kill loses them: the newest checkpoint is taken away."""
    run = tmp_path / "run"
    pretrain.pretrain(experiment(), run, stop=tiny_experiment.StopAfter(14))
    (run / "checkpoints" / "14").rename(tmp_path / "lost")
    assert len(lines(run)) == 14
    assert_same_run(run, pretrain.pretrain(experiment(), run), uninterrupted)


def test_a_damaged_checkpoint_costs_its_steps_only(uninterrupted, tmp_path, capsys):
    run = tmp_path / "run"
    pretrain.pretrain(experiment(), run, stop=tiny_experiment.StopAfter(14))
    path = run / "checkpoints" / "14" / "host" / "metadata"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert_same_run(run, pretrain.pretrain(experiment(), run), uninterrupted)
    assert "checkpoints/14 is damaged (host/metadata: its SHA-256" in capsys.readouterr().out


def test_other_mixture_weights_are_an_event_of_a_continued_run(tmp_path, capsys):
    """Of the main mixture; the opening one is left alone."""
    run, mixture = tmp_path / "run", tiny_experiment.get_config().pretrain.mixture
    pretrain.pretrain(experiment(), run, stop=tiny_experiment.StopAfter(13))
    mixture = tuple((name, spec, weight * (name == "plain")) for name, spec, weight in mixture)
    changes = {"pretrain.mixture": mixture, "pretrain.steps": 18}
    capsys.readouterr()
    found = pretrain.pretrain(experiment(**changes), run)
    assert "worked 0.5 -> 0" in capsys.readouterr().out
    (first, event), opening = found["mixture_events"]["main"], found["mixture_events"]["opening"]
    assert first == (0, {"plain": 0.5, "worked": 0.5})
    assert event[1] == {"plain": 0.5, "worked": 0.0}
    assert event[0] > 0
    assert len(opening) == 1
    main = found["data"]["main"]
    assert main["windows/worked"] <= event[0] // 2 + 1 < main["windows/plain"]


def test_a_finished_run_is_left_as_it_is(uninterrupted):
    assert_same_run(
        uninterrupted[0], pretrain.pretrain(experiment(), uninterrupted[0]), uninterrupted
    )


def test_continued_training_begins_where_the_other_run_ended(uninterrupted, tmp_path):
    changes = {
        "pretrain.steps": 1,
        "pretrain.opening_steps": 0,
        "pretrain.optimizer.decay_steps": 0,
    }
    init, run = tmp_path / "init", tmp_path / "run"
    shutil.copytree(uninterrupted[0], init)
    found = pretrain.pretrain(experiment(**changes), run, init=init)
    assert found["metrics"]["ntp_nats"] < 3.2
    recorded = json.loads((run / "command.json").read_text())
    assert recorded == {"command": "pretrain", "init": str(init)}
    shutil.rmtree(init)  # which the run needs no more
    again = pretrain.pretrain(experiment(**changes), run, init=init)
    assert again["params_sha256"] == found["params_sha256"]
    with pytest.raises(ValueError, match=r"holds a run of rpt\.pretrain --init"):
        pretrain.pretrain(experiment(**changes), tmp_path / "run")


@pytest.fixture(scope="module")
def gated(tmp_path_factory) -> tuple[pathlib.Path, dict]:
    """A gate that is never passed: looks at 4 and 8, the bound at 10, the decay until 13."""
    folder = tmp_path_factory.mktemp("gated") / "run"
    changes = {**GATE, "pretrain.gate.threshold": 1.1}
    return folder, pretrain.pretrain(experiment(**changes), folder)


def test_the_bound_ends_stage_0_below_the_gate(gated):
    folder, summary = gated
    found = lines(folder)
    assert [line["step"] for line in found if "gate_accuracy" in line] == [4, 8, 10]
    assert len(found) == 13
    assert [line["learning_rate_factor"] for line in found[-4:]] == pytest.approx(
        [1, 0.7, 0.4, 0.1]
    )
    gate = summary["gate"]
    assert (gate["decay_start"], gate["bound_reached"], gate["passed"]) == (10, True, False)
    assert 0 <= gate["final_accuracy"] <= 1
    # What the gate costs is counted, and is no training.
    assert summary["ledger"]["flops"]["eval"] > 0
    assert summary["ledger"]["training_flops"] == summary["ledger"]["flops"]["update"]


@pytest.mark.parametrize("stop_at", [6, 11])
def test_stopped_with_a_gate_is_uninterrupted(gated, tmp_path, stop_at):
    """Between two looks, and within the decay."""
    run, settings = tmp_path / "run", experiment(**{**GATE, "pretrain.gate.threshold": 1.1})
    pretrain.pretrain(settings, run, stop=tiny_experiment.StopAfter(stop_at))
    assert_same_run(run, pretrain.pretrain(settings, run), gated)


def test_a_passed_gate_begins_the_decay(tmp_path):
    settings = experiment(**{**GATE, "pretrain.gate.threshold": 0.0})
    found = pretrain.pretrain(settings, tmp_path / "run")
    assert (found["step"], found["gate"]["decay_start"]) == (7, 4)
    assert (found["gate"]["bound_reached"], found["gate"]["passed"]) == (False, True)
