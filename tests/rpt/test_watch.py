"""Skipped updates, alarms, heartbeats, goodput and traces."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpt import goodput, hosts, loading, optimizers, pretrain, profiling, update, watch
from tests.rpt import test_pretrain, tiny_experiment

HEALTHY = {
    "thought_tokens": 20.0,
    "trained_tokens": 100.0,
    "mismatch_mean_nats": 1e-6,
    "policy_entropy_nats": 0.5,
    "groups_mixed": 0.5,
    "gold_in_thought_rate": 0.3,
}
CONFIG = watch.WatchConfig(patience_steps=3, most_skipped_in_a_row=2)


# ---- updates that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "loss", "skipped"),
    [(1.0, 0.5, False), (np.nan, 0.5, True), (np.inf, 0.5, True), (1.0, np.nan, True)],
)
def test_an_update_that_is_not_finite_changes_nothing(gradient, loss, skipped):
    optimizer = optimizers.make(optimizers.OptimizerConfig())
    params = {"x": jnp.arange(3.0)}
    state = optimizers.init_state(optimizer, params)
    before = jax.tree.map(np.asarray, (params, state))
    grads = {"x": jnp.array([1.0, gradient, 1.0])}
    params, state, norm = update.apply(optimizer, params, state, grads, 1.0, loss)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), (params, state), before)
    assert all(jax.tree.leaves(same)) == skipped
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))
    seen = watch.Watch().after_update(loss, float(norm))
    assert (seen.skipped, seen.skipped_in_a_row) == (int(skipped), int(skipped))


def test_skipped_updates_in_a_row_end_the_run_and_its_state_is_saved(tmp_path, monkeypatch):
    """Bad from the 6th step on; what is saved at the 8th is the state of the 5th."""
    gradients, calls = update.ntp_gradients, []

    def bad(model, params, batch):
        nll, grads = gradients(model, params, batch)
        calls.append(jax.tree.map(np.asarray, params))
        return (nll * np.nan if len(calls) > 5 else nll), grads

    monkeypatch.setattr(update, "ntp_gradients", bad)
    run = tmp_path / "run"
    settings = test_pretrain.experiment(**{"watch.most_skipped_in_a_row": 3})
    met = []

    class Team(hosts.Hosts):
        def barrier(self):
            met.append((run / "checkpoints" / "8").is_dir())

    with pytest.raises(watch.TooManySkipped, match=r"in the last 3 steps, .* stopped at step 8"):
        pretrain.pretrain(settings, run, team=Team())
    assert met[-1], "the hosts parted before the first had named the checkpoint"
    saved = jax.tree.leaves(loading.load_run(run).params)
    for x, y in zip(saved, jax.tree.leaves(calls[5]), strict=True):
        np.testing.assert_array_equal(x, y)
    assert (run / "checkpoints" / "8").is_dir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_updates"] for line in lines] == [0, 0, 0, 0, 0, 1, 2, 3]
    assert json.loads((run / "heartbeat.json").read_text())["step"] == 8
    # A second start with good gradients goes on.
    monkeypatch.undo()
    found = pretrain.pretrain(settings, run)
    assert found["finished"]
    assert (found["watch"]["skipped"], found["watch"]["skipped_in_a_row"]) == (3, 0)


# ---- alarms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mismatch", {"mismatch_mean_nats": 0.1}),
        ("entropy_collapse", {"policy_entropy_nats": 0.001}),
        ("thought_collapse", {"thought_tokens": 2.0}),
        ("no_gradient", {"groups_mixed": 0.0}),
        ("gold_in_thought", {"gold_in_thought_rate": 0.99}),
    ],
)
def test_an_alarm_begins_after_its_patience_and_ends(name, change):
    seen = watch.Watch()
    said = []
    for step in range(1, 11):
        bad = 4 <= step <= 8
        seen, lines = seen.after_step(CONFIG, step, HEALTHY | change if bad else HEALTHY)
        seen = watch.Watch(**json.loads(json.dumps(dataclasses.asdict(seen))))
        said += [(step, line) for line in lines]
    ((step, line),) = said
    assert step == 6
    assert f"alarm {name} at step 6" in line
    (alarm,) = seen.alarms
    assert (alarm["name"], alarm["step"], alarm["end"]) == (name, 6, 9)


def test_no_alarm_without_reason():
    """Two bad steps of three; steps that train nothing say nothing of mismatch and entropy."""
    seen = watch.Watch()
    for step in range(1, 40):
        metrics = HEALTHY | ({"groups_mixed": 0.0} if step % 3 else {})
        seen, lines = seen.after_step(CONFIG, step, metrics)
        assert lines == []
    idle = HEALTHY | {"trained_tokens": 0.0, "policy_entropy_nats": 0.0, "mismatch_mean_nats": 9.0}
    for step in range(40, 50):
        seen, lines = seen.after_step(CONFIG, step, idle)
        assert lines == []


# ---- goodput, heartbeat, traces ------------------------------------------------------------------


def test_what_a_kill_costs_is_lost(tmp_path):
    first = goodput.Goodput(tmp_path, time.monotonic() - 100, None)
    first.add_laps({"seconds_rollout": 50.0, "seconds_data": 5.0, "seconds_update": 20.0})
    saved = first.state()
    assert saved["rollout"] == 50
    assert saved["stall"] == 5
    assert saved["other"] == pytest.approx(25, abs=1)
    first._began -= 40  # and then it works for 40 seconds more, which no checkpoint knows of
    first.beat(7)
    heart = json.loads((tmp_path / "heartbeat.json").read_text())
    assert (heart["step"], heart["status"]) == (7, "running")
    assert heart["time"] == pytest.approx(time.time(), abs=5)

    again = goodput.Goodput(tmp_path, time.monotonic() - 10, saved)
    assert again.state()["lost"] == pytest.approx(50, abs=1)  # and 10 until it went on
    assert again.state()["spent"] == pytest.approx(150, abs=1)
    shares = {k: v for k, v in again.summary().items() if k.startswith("share_")}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["share_rollout"] == pytest.approx(1 / 3, abs=0.02)


def test_chosen_steps_are_traced(tmp_path):
    run = tmp_path / "run"
    settings = test_pretrain.experiment(**{"profile.steps": (2, 3)})
    found = pretrain.pretrain(settings, run, stop=tiny_experiment.StopAfter(4))
    assert len(list((run / "profile").rglob("*.xplane.pb"))) == 1
    assert found["goodput"]["share_update"] > 0
    assert found["watch"]["alarms"] == []
    assert json.loads((run / "heartbeat.json").read_text())["status"] == "stopped"
    with pytest.raises(ValueError, match="counted from 1"):
        profiling.ProfileConfig((0,))
