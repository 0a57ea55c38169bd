"""The training loop: what a step does, what it writes, and that stopping changes nothing."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from data import pipeline
from rpt import (
    cli,
    config,
    experience,
    filtering,
    formats,
    ledger,
    loading,
    pretrain,
    rollout,
    scoring,
    sharding,
    train,
)
from rpt.model import decoding, transformer
from tests.rpt import tiny_experiment

ROOT = pathlib.Path(__file__).parents[2]
METRICS = {
    *("reward", "accuracy", "no_think_accuracy", "answer_rate", "gold_in_thought_rate"),
    *("groups_mixed", "groups_all_right", "groups_all_wrong", "groups_trained", "rounds"),
    *("cuts", "cut_entropy_nats", "thought_tokens", "branch_tokens", "over_budget_rate"),
    *("answers_right", "answers_wrong", "answers_no_answer", "answers_not_closed"),
    *("answers_truncated", "answers_leading_space", "answers_trailing_space"),
    *("policy_loss", "policy_entropy_nats", "ntp_nats", "kl_nats", "clip_fraction"),
    *("mismatch_mean_nats", "mismatch_max_nats", "trained_tokens", "grad_norm"),
    *("learning_rate_factor", "training_flops", "dropped_documents", "skipped_faults"),
    "skipped_updates",
}
# Every part of a step that keeps something of its own between steps or starts.
EVERYTHING = {
    "train.warmup_steps": 2,
    "train.warmup_learning_rate": 1e-2,
    "objective.kl_weight": 0.1,
    "reward.dynamic_from_step": 1,
    "reward.target_groups": 99,
    "reward.max_rounds": 2,
    "train.optimizer.learning_rate": 1e-2,
}


def experiment(base: pathlib.Path | str = "", **changes) -> config.Config:
    """The tiny experiment; changes are by dotted names."""
    found = tiny_experiment.get_config(f"init={base}")
    found.update_from_flattened_dict(changes)
    return config.from_config_dict(found)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> pathlib.Path:
    """A stage 0 that has learned how frequent the bytes are."""
    folder = tmp_path_factory.mktemp("base") / "run"
    pretrain.pretrain(experiment(), folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory) -> tuple[pathlib.Path, dict]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    return folder, train.train(experiment(base), folder)


def lines(path: pathlib.Path) -> list[dict]:
    """Of metrics.jsonl or samples.jsonl, without what a clock says."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.startswith("seconds_")}
        for line in found
    ]


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """Bit for bit: parameters, metrics of every step, samples, ledger and documents read."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert lines(one / name) == lines(other / name), name
    found, wanted = (json.loads((run / "summary.json").read_text()) for run in (one, other))
    for name in ("params_sha256", "step", "finished", "ledger", "data"):
        assert found[name] == wanted[name], name
    metrics, wanted_metrics = (
        {k: v for k, v in summary["metrics"].items() if not k.startswith("seconds_")}
        for summary in (found, wanted)
    )
    assert metrics == wanted_metrics


# ---- what a run writes ---------------------------------------------------------------------------


def test_metrics_are_there_from_the_first_step(uninterrupted):
    folder, summary = uninterrupted
    found = lines(folder / "metrics.jsonl")
    assert [line["step"] for line in found] == list(range(1, 9))
    for line in found:
        assert set(line) == METRICS | {"step"}
        assert np.isfinite(list(line.values())).all()
        assert line["cuts"] == 6
        groups = ("groups_mixed", "groups_all_right", "groups_all_wrong")
        assert sum(line[name] for name in groups) == pytest.approx(1)
        assert line["mismatch_max_nats"] < 1e-4
        assert line["clip_fraction"] == 0  # on-policy
    assert summary["finished"]
    assert {k: v for k, v in summary["metrics"].items() if k in METRICS} == {
        k: v for k, v in found[-1].items() if k != "step"
    }


def test_the_kinds_of_the_ledger_add_up(uninterrupted, base):
    _, summary = uninterrupted
    found = summary["ledger"]
    model = loading.load_run(base).model
    assert set(found["flops"]) == set(found["tokens"]) == set(ledger.KINDS)
    kinds = {name: found["flops"][name] for name in ledger.TRAINING_KINDS}
    assert found["training_flops"] == sum(kinds.values()) == summary["metrics"]["training_flops"]
    assert kinds["warmup"] == 0
    # Four steps are shown: both rows, 24 branches of at most 8 positions behind the tail.
    assert 4 * 48 < found["tokens"]["eval"] <= 4 * 48 * 16
    # 8 steps of 2 rows of 48: each trunk is scored once.
    assert found["tokens"]["score"] == 8 * 2 * 48
    assert kinds["score"] == 8 * ledger.trunk_flops(model, 2, 48, passes=1)
    # At least one decoding position for all 2 * 3 * 8 branches, at most all of the 7.
    assert 8 * 48 * 1 < found["tokens"]["rollout"] <= 8 * 48 * 7
    assert found["tokens"]["update"] > 8 * 2 * 48
    assert kinds["update"] > 8 * ledger.trunk_flops(model, 2, 48, passes=3)


def test_samples_hold_documents_cuts_and_thoughts(uninterrupted, base):
    folder, _ = uninterrupted
    tokenizer = loading.load_run(base).tokenizer
    found = lines(folder / "samples.jsonl")
    assert [sample["step"] for sample in found] == [1, 1, 3, 3, 5, 5, 7, 7]
    rewards = set()
    for sample in found:
        text = sample["text"].encode()
        assert len(sample["cuts"]) == 3
        for cut in sample["cuts"]:
            assert cut["target"].encode() == text[cut["cut"] : cut["cut"] + 1]
            assert sample["text"][cut["offset"] :].startswith(cut["target"])
            assert 0 < cut["no_think_prob"] < 1
            assert len(cut["thoughts"]) == 8
            for thought in cut["thoughts"]:
                assert thought["text"].startswith("<think>")
                assert thought["reward"] == float(thought["answer"] == cut["target"])
                assert (thought["prob"] is None) == (thought["answer"] is None)
                rewards.add(thought["reward"])
    assert rewards == {0.0, 1.0}
    assert tokenizer.vocab_size == 260


def test_the_run_directory_says_what_ran(uninterrupted, base):
    folder, _ = uninterrupted
    assert config.from_json(json.loads((folder / "config.json").read_text())) == experiment(base)
    assert json.loads((folder / "command.json").read_text()) == {"command": "train", "init": ""}
    (start,) = json.loads((folder / "run.json").read_text())
    assert {"time", "command", "overrides", "commit", "versions", "machine"} <= set(start)
    assert loading.load_run(folder).model == loading.load_run(base).model


# ---- stopping and going on -----------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [1, 4])
def test_stopped_is_uninterrupted(uninterrupted, base, tmp_path, stop_at):
    """Checkpoints are due at 3 and 6: a stop writes one at any step.

    What it began with may be gone by then: the disk of a TPU that was replaced is empty.
    """
    run, init = tmp_path / "run", tmp_path / "init"
    shutil.copytree(base, init)
    stopped = train.train(experiment(init), run, stop=tiny_experiment.StopAfter(stop_at))
    assert (stopped["step"], stopped["finished"]) == (stop_at, False)
    assert len(lines(run / "metrics.jsonl")) == stop_at
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 3, "rew')  # what a kill in the middle of a line leaves behind
    shutil.rmtree(init)
    train.train(experiment(init), run)
    assert_same_run(run, uninterrupted[0])


def test_a_finished_run_is_left_as_it_is(uninterrupted, base):
    folder, summary = uninterrupted
    before = (folder / "metrics.jsonl").read_bytes()
    again = train.train(experiment(base), folder)
    assert (folder / "metrics.jsonl").read_bytes() == before
    for name in ("params_sha256", "metrics", "ledger"):
        assert again[name] == summary[name]


def test_more_steps_may_be_asked_for(uninterrupted, base, tmp_path):
    """Steps are not frozen; without a decay the first ones are the same."""
    train.train(experiment(base, **{"train.steps": 5}), tmp_path / "run")
    train.train(experiment(base), tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted[0])
    changes = [
        start["changed_since_last_start"]
        for start in json.loads((tmp_path / "run" / "run.json").read_text())
    ]
    assert changes == [[], ["train.steps"]]


def two_stories(first: float, second: float) -> dict:
    specs = [f"miniature:?kind=plain&split=train&seed={seed}" for seed in (0, 1)]
    return {"train.mixture": (("first", specs[0], first), ("second", specs[1], second))}


def test_other_mixture_weights_are_an_event_of_a_continued_run(base, tmp_path, capsys):
    """Weights alone may change; what was read counts on, and the run says so."""
    run, weights = tmp_path / "run", two_stories(1.0, 0.0)
    before = train.train(experiment(base, **weights), run, stop=tiny_experiment.StopAfter(2))
    assert before["mixture_events"] == [(0, {"first": 1.0, "second": 0.0})]
    assert "mixture weights" not in capsys.readouterr().out
    weights = two_stories(0.25, 0.75) | {"train.steps": 4}
    after = train.train(experiment(base, **weights), run)
    assert "mixture weights after 4 windows: first 1 -> 0.25, second 0 -> 0.75" in (
        capsys.readouterr().out
    )
    assert after["mixture_events"][1:] == [(4, {"first": 0.25, "second": 0.75})]
    read = {name: after["data"][f"windows/{name}"] for name in ("first", "second")}
    assert read == {"first": 5, "second": 3}
    starts = json.loads((run / "run.json").read_text())
    changed = [f"train.mixture.{k}.weight" for k in (0, 1)]
    assert starts[1]["changed_since_last_start"] == [*changed, "train.steps"]
    # The same weights again are no further event.
    assert (
        train.train(experiment(base, **weights), run)["mixture_events"] == after["mixture_events"]
    )
    other = two_stories(0.25, 0.75)["train.mixture"][::-1]
    with pytest.raises(ValueError, match=r"config\.train\.mixture\.0\.name differs"):
        train.train(experiment(base, **{"train.mixture": other, "train.steps": 4}), run)


# The real command, which sends itself a real signal once the metrics of a step are written.
SIGNALLED = """
import os, runpy, sys
from rpt import runs

number, at = int(sys.argv.pop(1)), int(sys.argv.pop(1))
write = runs.Log.write

def write_and_signal(log, step, *rest):
    write(log, step, *rest)
    if step == at:
        os.kill(os.getpid(), number)

runs.Log.write = write_and_signal
runpy.run_module("rpt.train", run_name="__main__", alter_sys=True)
"""


def signalled(number: int, step: int, base, workdir, cache) -> subprocess.CompletedProcess:
    arguments = [f"--config=tests/rpt/tiny_experiment.py:init={base}", f"--workdir={workdir}"]
    # Compiled programs are kept between the processes, which compile far more than they compute.
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    return subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(number), str(step), *arguments],
        cwd=ROOT,
        env={**os.environ, **kept},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_killed_and_terminated_is_uninterrupted(uninterrupted, base, tmp_path):
    """SIGTERM at step 2, then kill -9 at step 6, before its checkpoint; always the same command."""
    run, rest = tmp_path / "run", (base, tmp_path / "run", tmp_path / "cache")
    done = signalled(int(signal.SIGTERM), 2, *rest)
    assert done.returncode == 0, done.stderr
    assert "stopped; the same command goes on at step 2" in done.stdout
    assert len(lines(run / "metrics.jsonl")) == 2

    done = signalled(int(signal.SIGKILL), 6, *rest)
    assert done.returncode == -signal.SIGKILL
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(run / "samples.jsonl")][-1] == 5
    assert not (run / "checkpoints" / "6").exists()
    assert json.loads((run / "summary.json").read_text())["step"] == 2

    train.train(experiment(base), run)
    assert_same_run(run, uninterrupted[0])
    assert len(json.loads((run / "run.json").read_text())) == 3


def test_a_stop_within_the_warm_up_leaves_nothing_that_would_be_continued(base, tmp_path, capsys):
    changes = {"train.warmup_steps": 3, "train.steps": 1}
    settings, run = experiment(base, **changes), tmp_path / "run"
    stop = tiny_experiment.StopAfter(1)
    cli.report(lambda: train.train(settings, run, stop=stop))  # no SystemExit: status 0
    printed = capsys.readouterr().out
    assert "warm-up 1/3" in printed
    assert "warm-up 2/3" not in printed
    assert "the same command begins it again" in printed
    train.train(settings, run)
    assert "warm-up 1/3" in capsys.readouterr().out


def test_a_run_keeps_its_template_when_the_file_is_edited(base, tmp_path):
    path, run = tmp_path / "mine.txt", tmp_path / "run"
    text = "{{document}}<think>{{thought}}</think>{{answer}}"
    path.write_text(text)
    settings = experiment(base, **{"data.template": str(path), "train.steps": 1})
    train.train(settings, run)
    path.write_text(text.replace("</think>", "</think> "))
    kept = loading.load_run(run).experiment["data"]["template"]
    assert pathlib.Path(kept).read_text() == text
    with pytest.raises(ValueError, match=r"mine\.txt was edited after this run began"):
        train.train(settings, run)


def test_another_seed_is_another_run(uninterrupted, base, tmp_path):
    other = train.train(experiment(base, seed=4, **{"train.steps": 1}), tmp_path / "run")
    first = lines(uninterrupted[0] / "metrics.jsonl")[0]
    assert other["metrics"]["reward"] != first["reward"]
    assert other["metrics"]["ntp_nats"] != first["ntp_nats"]


# ---- what a step is made of ----------------------------------------------------------------------


def test_rewards_alone_move_the_parameters(base, tmp_path):
    found = train.train(
        experiment(base, **{"objective.ntp_weight": 0.0, "train.steps": 1}), tmp_path / "run"
    )
    assert found["metrics"]["groups_mixed"] > 0
    assert found["metrics"]["grad_norm"] > 1e-3
    before = jax.tree.leaves(loading.load_run(base).params)
    after = jax.tree.leaves(loading.load_run(tmp_path / "run").params)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1e-4


def test_a_step_makes_rewarded_branches_likelier_than_unrewarded_ones(base, tmp_path, monkeypatch):
    """Along the advantages, the log-probability of whole branches must rise, and only there."""
    seen = []

    def collect(task, params, batch, *rest):
        lived, extra = collect_really(task, params, batch, *rest)
        seen.append((batch, lived))
        return lived, extra

    collect_really = experience.collect
    monkeypatch.setattr(experience, "collect", collect)
    changes = {"objective.ntp_weight": 0.0, "train.steps": 1, "train.optimizer.warmup_steps": 1}
    train.train(experiment(base, **changes), tmp_path / "run")
    batch, lived = seen[0]

    def log_prob_BR(workdir):
        """Of every branch's sampled tokens, by the plain primitives."""
        loaded = loading.load_run(workdir)
        _, kv = transformer.trunk(
            loaded.model, loaded.params, batch.tokens_BS, batch.segments_BS, batch.positions_BS
        )
        tokens_BRT, sampled_BRT = lived.result.tokens_BRT, lived.result.sampled_BRT
        cut_BR = np.repeat(lived.cut_BC, tokens_BRT.shape[1] // lived.cut_BC.shape[1], axis=1)
        hidden, _ = transformer.branch(
            loaded.model, loaded.params, kv, tokens_BRT, 0 * cut_BR, cut_BR, cut_BR
        )
        logits = hidden @ transformer.unembedding(loaded.model, loaded.params).T
        log_prob = jax.nn.log_softmax(logits[:, :, :-1])
        token = np.take_along_axis(np.asarray(log_prob), tokens_BRT[:, :, 1:, None], axis=3)
        return (token[..., 0] * sampled_BRT[:, :, 1:]).sum(axis=2)

    advantage_BR = lived.advantage_BCG.reshape(len(lived.cut_BC), -1)
    trained_BR = np.repeat(lived.trained_BC, advantage_BR.shape[1] // lived.cut_BC.shape[1], axis=1)
    assert trained_BR.any()
    assert (advantage_BR[trained_BR] > 0).any()
    change_BR = log_prob_BR(tmp_path / "run") - log_prob_BR(base)
    assert (advantage_BR * change_BR)[trained_BR].sum() > 1e-3
    better, worse = trained_BR & (advantage_BR > 0), trained_BR & (advantage_BR < 0)
    assert change_BR[better].mean() > change_BR[worse].mean()


@pytest.mark.parametrize("ntp_weight", [0.0, 0.5])
def test_without_a_mixed_group_only_the_next_token_loss_is_left(base, tmp_path, ntp_weight):
    """Greedy thoughts of a group are all the same."""
    changes = {"rollout.temperature": 0.0, "objective.ntp_weight": ntp_weight, "train.steps": 1}
    found = train.train(experiment(base, **changes), tmp_path / "run")
    metrics = found["metrics"]
    assert metrics["groups_mixed"] == metrics["groups_trained"] == metrics["policy_loss"] == 0
    assert metrics["trained_tokens"] == 0
    assert (metrics["grad_norm"] > 0) == (ntp_weight > 0)
    base_digest = json.loads((base / "summary.json").read_text())["params_sha256"]
    assert (found["params_sha256"] != base_digest) == (ntp_weight > 0)


@pytest.fixture(scope="module")
def everything(base, tmp_path_factory) -> tuple[pathlib.Path, dict, dict[str, int]]:
    """Warm-up, KL to a reference, dynamic sampling and a proxy in one run of 4 steps; and how often
    it made what decoding reads."""
    folder = tmp_path_factory.mktemp("everything") / "run"
    changes = {**EVERYTHING, "positions.proxy": "init", "train.steps": 4}
    made = dict.fromkeys(("sampling_copy", "prepare_trunk"), 0)

    def counted(name, original):
        def call(model, given):
            # The warm-up's own are parts of a program of it.
            made[name] += not isinstance(jax.tree.leaves(given)[0], jax.core.Tracer)
            return original(model, given)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in made:
            patch.setattr(decoding, name, counted(name, getattr(decoding, name)))
        return folder, train.train(experiment(base, **changes), folder), made


def test_dynamic_sampling_draws_further_cuts(everything):
    found = lines(everything[0] / "metrics.jsonl")
    assert [line["rounds"] for line in found] == [1, 2, 2, 2]
    assert [line["cuts"] for line in found] == [6, 12, 12, 12]


def test_the_rounds_of_a_step_share_one_sampling_copy(everything):
    """Four steps with seven rounds."""
    assert everything[2] == {"sampling_copy": 4, "prepare_trunk": 4}


def test_the_reference_is_the_policy_behind_the_warm_up(everything, base):
    """So the first step is at no distance from it, and later ones are."""
    found = lines(everything[0] / "metrics.jsonl")
    trained = [line for line in found if line["groups_trained"]]
    assert found[0]["groups_trained"]
    assert found[0]["kl_nats"] < 1e-9
    assert len(trained) > 1
    assert all(line["kl_nats"] > 1e-5 for line in trained[1:])
    warmed = jax.tree.leaves(loading.load_run(everything[0], step=0).params)
    before = jax.tree.leaves(loading.load_run(base).params)
    assert max(np.abs(a - b).max() for a, b in zip(before, warmed, strict=True)) > 1e-3


def test_what_a_step_executes_is_in_the_ledger(everything, base):
    found = everything[1]["ledger"]
    model = loading.load_run(base).model
    assert found["flops"]["warmup"] > 2 * ledger.trunk_flops(model, 2, 48, passes=4)
    # Policy and proxy once each, and the reference on trunk and branches.
    scored = 4 * 3 * ledger.trunk_flops(model, 2, 48, passes=1)
    branches = found["flops"]["update"] - 4 * ledger.trunk_flops(model, 2, 48, passes=3)
    assert branches > 0
    assert found["flops"]["score"] == scored + branches // 3
    assert found["tokens"]["score"] == 4 * 2 * 48 * 2 + found["tokens"]["update"]


@pytest.mark.parametrize("stop_at", [0, 2])
def test_stopped_with_everything_is_uninterrupted(everything, base, tmp_path, stop_at):
    """Reference and proxy of a continued run are not its current policy, nor that before the
    warm-up."""
    changes = {**EVERYTHING, "positions.proxy": "init", "train.steps": 4}
    if stop_at:
        changes["logging.keep_last"] = 1  # so that the checkpoint of step 0 is gone
    run = tmp_path / "run"
    # Each step of the warm-up asks for the signal too.
    stop = tiny_experiment.StopAfter(EVERYTHING["train.warmup_steps"] + stop_at)
    assert train.train(experiment(base, **changes), run, stop=stop)["step"] == stop_at
    train.train(experiment(base, **changes), run)
    assert_same_run(run, everything[0])


def test_without_a_warm_up_the_policy_as_it_began_is_its_base(base, tmp_path, monkeypatch):
    """And stays it, where the policy's own entropies become others."""
    seen = []
    entropies = filtering.entropies

    def watched(*given):
        seen.append(entropies(*given)[0])
        return entropies(*given)

    monkeypatch.setattr(filtering, "entropies", watched)
    changes = {"train.steps": 2, "objective.ntp_weight": 1.0}
    found = {}
    for name, proxy in {"init": "init", "base": str(base), "policy": ""}.items():
        seen.clear()
        settings = experiment(base, **changes, **{"positions.proxy": proxy})
        train.train(settings, tmp_path / name)
        found[name] = list(seen)
    np.testing.assert_array_equal(found["init"], found["base"])
    np.testing.assert_array_equal(found["init"][0], found["policy"][0])
    assert np.abs(found["init"][1] - found["policy"][1]).max() > 1e-3


def test_no_thought_depends_on_the_document_from_its_cut_on(base):
    """Bit for bit, the whole way from trunk to sampled thoughts and answers."""
    settings = experiment(base)
    loaded = loading.load_run(base)
    template = formats.load_template(settings.data.template)
    task = experience.Task(loaded.model, settings, loaded.tokenizer, template)
    params = loading.place(
        sharding.make_mesh(settings.mesh, settings.train.batch_size), loaded.model, loaded.params
    )
    batch = next(
        pipeline.trunk_batches(
            loading.open_mixture(settings.train.mixture),
            loaded.tokenizer,
            batch_size=2,
            seq_len=48,
            header_ids=loading.header_ids(loaded.tokenizer, template.header, add_bos=True),
            min_context=8,
            seed=0,
        )
    )
    cut_BC, valid_BC = np.array([[12, 24, 40], [9, 30, 47]]), np.ones((2, 3), bool)
    G = settings.rollout.group_size

    def think(tokens_BS):
        _, kv = scoring.score_trunk(
            task.model, params, tokens_BS, batch.segments_BS, batch.positions_BS
        )
        sampler = rollout.make_sampler(task.model, params, kv)
        return rollout.rollout(
            task.model, settings.rollout, sampler, task.tables, cut_BC, valid_BC,
            seed=0, step=0, document_ids_B=batch.document_ids_B,
        )  # fmt: skip

    original = think(batch.tokens_BS)
    for slot in range(3):
        after_BS = np.arange(48) >= cut_BC[:, slot, None]
        changed = think(np.where(after_BS, (batch.tokens_BS + 1) % 256, batch.tokens_BS))
        before, later = slice(0, (slot + 1) * G), slice((slot + 1) * G, None)
        for name in ("tokens_BRT", "log_prob_BRT", "length_BR", "answer_start_BR"):
            found, wanted = getattr(changed, name), getattr(original, name)
            np.testing.assert_array_equal(found[:, before], wanted[:, before], err_msg=name)
        if slot < 2:
            assert (changed.log_prob_BRT[:, later] != original.log_prob_BRT[:, later]).any()
