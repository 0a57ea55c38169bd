"""All parts of an experiment for real, on the smallest model: from nothing to the report."""

import dataclasses
import json
import shutil

import pytest

from configs import common
from rpt import (
    config,
    evaluation_records,
    experiment,
    experiment_config,
    experiment_curves,
    experiment_pieces,
    experiment_plan,
    experiment_report,
    experiment_state,
    pretrain,
    report_data,
    report_html,
)
from tests.rpt import tiny_experiment

EVALUATED = ("base", "rpt", "ntp", "rpt_rlvr")


def tiny() -> config.Config:
    """Everything that an experiment has, as small as it can be."""
    changed = tiny_experiment.get_config()
    for split in ("validation", "test"):
        changed.evaluate[split] = (
            ("stories", f"miniature:?kind=plain&split={split}", 1.0),
            ("english", f"pydoc:?split={split}", 0.5),
        )
    changed.evaluate.documents = 6
    changed.evaluate.gate_documents = 3
    changed.evaluate.positions_per_document = 4
    changed.evaluate.other_positions_per_document = 2
    changed.evaluate.thoughts = 2
    changed.evaluate.batch_size = 4
    changed.evaluate.bins_nats = (0.1, 0.2)
    validation = "miniature:?kind=plain&split=validation&max_variables=2"
    changed.pretrain.gate.mixture = (("stories", validation, 1.0),)
    changed.pretrain.gate.labels = ("answer/1", "answer/2")
    changed.pretrain.gate.threshold = 0.0
    changed.pretrain.gate.first_step = 8
    changed.pretrain.gate.documents = 2
    changed.pretrain.gate.max_steps = 8
    changed.train.steps = 2
    changed.train.seq_len = 72
    plan = changed.experiment
    plan.claim_part = "stories"
    plan.reference = "reference"
    plain = (("stories", "miniature:?kind=plain&split=train", 1.0),)
    short = {"mixture": plain, "batch_size": 4, "seq_len": 64}
    plan.arms = (
        common.arm("base", "base", "pretrain"),
        common.arm(
            *("reference", "reference", "pretrain", {"pretrain": {**short, "steps": 4}}),
            seed_offset=1000,
            evaluated=False,
        ),
        common.arm("rpt", "RPT", "train", {"positions.mode": "random"}, init="base", curve="rpt"),
        common.arm(
            *("ntp", "continued NTP", "pretrain", {"pretrain": short}),
            init="base",
            flops_of="rpt",
        ),
        common.arm(
            *("rpt_rlvr", "RPT, then RLVR", "train"),
            # Without gated thinking, so validation is not read for it.
            {"train.steps": 1, "evaluate.gate_documents": 0},
            init="rpt",
        ),
    )
    plan.claims = tuple(
        {"name": name, "a": "rpt", "mode_a": mode, "b": b, "mode_b": mode_b, "part": "stories"}
        | {"bin": bin}
        for name, mode, b, mode_b, bin in (
            ("thought", "thought_argmax", "base", "thought_argmax", ""),
            ("gated", "gated", "ntp", "no_think", "gate"),
            ("lean", "thought_argmax", "rpt_rlvr", "thought_argmax", ""),
        )
    )
    return config.from_config_dict(changed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Of several seeds the one that there is, made part by part."""
    workdir = tmp_path_factory.mktemp("experiment")
    settings = tiny()
    plan = dataclasses.replace(settings.experiment, seeds=(3,))
    settings = dataclasses.replace(settings, experiment=plan)
    for name, part in experiment_plan.parts(settings).items():
        experiment.run_part(settings, workdir, name)
        assert experiment_state.is_done(settings, workdir, part)
    return workdir, settings


def read(path):
    return json.loads(path.read_text())


def test_arms_start_where_they_are_to_with_their_changes_and_controls_execute_the_flops(finished):
    workdir, settings = finished
    root = workdir / "seed3"
    budget = read(root / "rpt" / "summary.json")["ledger"]["training_flops"]
    control = config.from_json(read(root / "ntp" / "config.json"))
    one = pretrain.step_flops(settings.model, control.pretrain)
    assert 0 <= read(root / "ntp" / "summary.json")["ledger"]["training_flops"] - budget < one
    assert read(root / "ntp" / "command.json")["init"] == str(root / "base")
    for arm, init in (("rpt", "base"), ("rpt_rlvr", "rpt")):
        assert read(root / arm / "config.json")["train"]["init"] == str(root / init)
    assert read(root / "rpt" / "config.json")["positions"]["mode"] == "random"
    assert read(root / "rpt_rlvr" / "config.json")["positions"]["mode"] == "entropy"
    assert read(root / "reference" / "config.json")["seed"] == 1003
    for arm, init in (("rpt", "base"), ("ntp", "base"), ("rpt_rlvr", "rpt")):
        (start,) = read(root / arm / "run.json")
        given = read(root / init / "summary.json")["params_sha256"]
        assert start["init_params_sha256"] == given
    assert read(root / "base" / "run.json")[0]["init_params_sha256"] == ""
    with experiment_state.positions_path(root, "test").open() as file:
        assert json.loads(file.readline())["seed"] == 3


def test_every_arm_is_measured_on_the_same_positions_and_test_is_read_once(finished):
    workdir, settings = finished
    folder = workdir / "seed3" / "evaluation"
    for split in ("validation", "test"):
        arms = EVALUATED if split == "test" else EVALUATED[:-1]
        assert {path.parent.parent.name for path in folder.glob(f"*/{split}/results.json")} == {
            *arms
        }
        results = [read(folder / arm / split / "results.json") for arm in arms]
        assert len({result["positions"]["sha256"] for result in results}) == 1
    experiment.run_part(settings, workdir, "seed3/evaluate_rpt")  # is done, so nothing happens
    readings = (folder / "test_readings.jsonl").read_text().splitlines()
    assert len(readings) == len(EVALUATED)


def test_a_checkpoint_as_the_reference_makes_the_positions_that_an_arm_would(finished, tmp_path):
    workdir, settings = finished
    arm = workdir / "seed3" / "reference"
    plan = dataclasses.replace(settings.experiment, reference=str(arm))
    named = dataclasses.replace(settings, experiment=plan)
    experiment.run_part(named, tmp_path, "seed3/positions")
    for split in ("validation", "test"):
        made = [
            (root / "seed3" / "evaluation" / f"positions_{split}.jsonl").read_text()
            for root in (tmp_path, workdir)
        ]
        assert made[0] == made[1]
    experiment.run_part(named, tmp_path, "seed3/positions")  # is done, so nothing happens
    moved = dataclasses.replace(plan, reference=f"{arm}/elsewhere")
    with pytest.raises(ValueError, match=r"was made with another reference \(.*reference\) than"):
        experiment.run_part(
            dataclasses.replace(settings, experiment=moved), tmp_path, "seed3/positions"
        )
    # The arms' tokens are what is evaluated.
    data = dataclasses.replace(settings.data, tokenizer="miniature:320")
    other = dataclasses.replace(named, data=data)
    with pytest.raises(ValueError, match=r"reference .*reference has another tokenizer"):
        experiment.run_part(other, tmp_path / "other", "seed3/positions")
    plan = dataclasses.replace(plan, reference=str(tmp_path / "nothing"))
    nothing = dataclasses.replace(settings, experiment=plan)
    with pytest.raises(FileNotFoundError, match="nothing: neither a run directory nor"):
        experiment.run_part(nothing, tmp_path / "none", "seed3/positions")


def test_trials_read_validation_alone(finished, tmp_path):
    workdir, settings = finished
    trial = tmp_path / "seed3"
    shutil.copytree(workdir / "seed3", trial, ignore=shutil.ignore_patterns("evaluation", "pieces"))
    plan = dataclasses.replace(settings.experiment, split="validation")
    trials = dataclasses.replace(settings, experiment=plan)
    for name in ("positions", "evaluate_rpt_rlvr"):
        experiment.run_part(trials, tmp_path, f"seed3/{name}")
    assert not list(tmp_path.rglob("*test*"))
    found = experiment_report.make(
        experiment_pieces.read_folder(trial / "pieces"), tmp_path / "out"
    )
    assert found["split"] == "validation"
    assert "validation, stories" in (tmp_path / "out" / "report.md").read_text()
    # What was found of validation is no result of test.
    for now, done in ((trials, True), (settings, False)):
        part = experiment_plan.parts(now)["seed3/evaluate_rpt_rlvr"]
        assert experiment_state.is_done(now, tmp_path, part) == done


def test_the_report_is_made_of_pieces_that_are_small_and_name_no_path(finished, tmp_path):
    workdir, settings = finished
    root = workdir / "seed3"
    parts = experiment_plan.parts(settings).values()
    for path in (root / "pieces").iterdir():
        assert path.stat().st_size < 40_000
        assert str(workdir) not in json.dumps(experiment_pieces.read(path).content)
        shutil.copy(path, tmp_path)
    assert experiment.experiment(settings, workdir, None)  # nothing is left to run
    assert all(experiment_state.is_done(settings, workdir, part) for part in parts)
    again = experiment_report.make(experiment_pieces.read_folder(tmp_path), tmp_path / "again")
    for folder in (workdir, root):  # of one seed, both say the same
        for name in ("results.json", "report.md"):
            assert (folder / name).read_text() == (tmp_path / "again" / name).read_text()
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    recorded = {
        arm: evaluation_records.load(root / "evaluation" / arm / "test" / "predictions.jsonl")
        for arm in ("rpt", "base", "ntp", "rpt_rlvr")
    }
    expected = evaluation_records.compare(recorded["rpt"], recorded["base"], ">0.2", part="stories")
    by_name = {claim["name"]: claim["seeds"]["3"] for claim in again["claims"]}
    assert by_name["thought"]["difference"]["mean"] == pytest.approx(expected.mean)
    assert not by_name["thought"]["shown"]  # too few positions, whatever the difference
    full = (recorded["rpt"], recorded["rpt_rlvr"])  # which has no gated thinking
    expected = evaluation_records.compare(*full, ">0.2", part="stories")
    assert by_name["lean"]["difference"]["mean"] == pytest.approx(expected.mean)
    gated = again["arms"]["rpt"]["seeds"]["3"]["parts"]["stories"]["gated"]["reported"]
    expected = evaluation_records.compare(
        recorded["rpt"], recorded["ntp"], "gate", part="stories", mode_b="no_think",
        threshold_a=gated["threshold"],
    )  # fmt: skip
    assert by_name["gated"]["difference"]["mean"] == pytest.approx(expected.mean)
    compute = {arm: entry["seeds"]["3"]["compute"] for arm, entry in again["arms"].items()}
    assert compute["rpt"]["flops_as_rows"] > compute["rpt"]["flops_executed"]
    assert compute["ntp"]["flops_as_rows"] == compute["ntp"]["flops_executed"]
    assert compute["rpt_rlvr"]["flops_executed"] > compute["rpt"]["flops_executed"]


def test_the_page_is_made_of_what_an_experiment_writes(finished):
    """Each section reads the files as they really are."""
    workdir, settings = finished
    assert experiment.experiment(settings, workdir, None)  # nothing is left to run
    gathered = report_data.gather(workdir)
    assert not gathered.missing
    assert [one.label for one in gathered.experiments] == ["seed 3"]
    assert set(EVALUATED) <= set(gathered.experiments[0].runs)
    page = report_html.page(gathered, [])
    assert "Nothing here" not in page
    assert "Cannot be shown" not in page
    assert "Elsewhere" not in page  # every cut has its place in the text
    assert 'class="meter"' in page
    assert "when test was first read" in page
    assert "unchanged since" in page


def test_another_plan_reaches_the_pieces_without_a_run(finished, monkeypatch):
    monkeypatch.setattr(experiment_curves, "draw", lambda found, path: None)
    workdir, settings = finished
    plan = settings.experiment
    claims = (dataclasses.replace(plan.claims[0], goal=True), *plan.claims[1:])
    changed = dataclasses.replace(settings, experiment=dataclasses.replace(plan, claims=claims))
    assert experiment.experiment(changed, workdir, None)
    (last,) = (workdir / "changes.jsonl").read_text().splitlines()
    assert json.loads(last)["changed_since_last_start"] == ["experiment.claims.0.goal"]
    text = (workdir / "report.md").read_text()
    assert "## Goals" in text
    assert "CHANGED at" in text
    assert read(workdir / "results.json")["plan"]["changed"] == ["claim thought"]


def test_fewer_arms_and_more_seeds_share_the_directory(finished, tmp_path, monkeypatch):
    """The report has what there is of its arms; nothing is lost or run again."""
    monkeypatch.setattr(experiment_curves, "draw", lambda found, path: None)
    monkeypatch.setattr(experiment, "run_part", None)
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    plan, settings = finished[1].experiment, finished[1]
    few = dataclasses.replace(plan, arms=plan.arms[:3], claims=plan.claims[:1], seeds=(3, 4))
    few = dataclasses.replace(settings, experiment=few)
    root, other = (tmp_path / f"seed{seed}" for seed in (3, 4))
    for arm in ("base", "rpt"):  # made elsewhere: here are its pieces
        content = experiment_pieces.read(experiment_pieces.path(root, arm)).content
        evaluated = content["evaluation"]
        evaluated = {**evaluated, "settings": {**evaluated["settings"], "seed": 4}}
        content = {**content, "seed": 4, "evaluation": evaluated}
        experiment_pieces.save(experiment_pieces.path(other, arm), content)
    experiment._report(few, few, tmp_path)
    found = read(tmp_path / "results.json")
    assert (found["seeds"], found["missing"], list(found["arms"])) == ([3, 4], [], ["base", "rpt"])
    assert found["claims"][0]["pooled"]["seeds"] == 2
    assert experiment.experiment(settings, tmp_path, None)  # nothing is left to run
    found = read(tmp_path / "results.json")
    assert (found["seeds"], found["missing"]) == ([3, 4], [])
    assert list(found["arms"]) == list(EVALUATED)
    assert [claim["pooled"]["seeds"] for claim in found["claims"]] == [2, 1, 1]
    assert len(experiment_pieces.read_folder(tmp_path)) == 6
    content["evaluation"]["settings"]["thoughts"] = 9
    experiment_pieces.save(experiment_pieces.path(other, "rpt"), content)
    with pytest.raises(ValueError, match=r"seed4.evaluation.rpt has read test with other settings"):
        experiment.experiment(settings, tmp_path, None)


def test_an_arm_that_was_trained_anew_is_evaluated_anew(finished):
    workdir, settings = finished
    part = experiment_plan.parts(settings)["seed3/evaluate_base"]
    path = workdir / "seed3" / "base" / "summary.json"
    kept = path.read_text()
    path.write_text(json.dumps({**json.loads(kept), "params_sha256": "another"}))
    assert not experiment_state.is_done(settings, workdir, part)
    path.write_text(kept)
    assert experiment_state.is_done(settings, workdir, part)


def test_an_arm_of_another_plan_is_not_taken_for_this_ones(finished):
    workdir, settings = finished
    plan = settings.experiment
    steps = experiment_config.Change("train.optimizer.learning_rate", 0.25)
    arms = tuple(
        dataclasses.replace(arm, changes=(*arm.changes, steps)) if arm.name == "rpt" else arm
        for arm in plan.arms
    )
    changed = dataclasses.replace(settings, experiment=dataclasses.replace(plan, arms=arms))
    with pytest.raises(ValueError, match=r"rpt was trained with .*learning_rate differs"):
        experiment.experiment(changed, workdir, None)


def test_a_part_run_apart_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="part ntp needs base, which is not finished below"):
        experiment.run_part(tiny(), tmp_path / "root", "ntp")
    with pytest.raises(ValueError, match="unknown part 'npt'; known are base, reference"):
        experiment.run_part(tiny(), tmp_path / "root", "npt")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment.claim_part": "novels"}, "novels"),
        ({"evaluate.gate_documents": 0}, "gate_documents"),
    ],
)
def test_what_the_report_needs_is_asked_for_before_the_first_part(tmp_path, changes, message):
    settings = dataclasses.asdict(tiny())
    for name, value in changes.items():
        *sections, field = name.split(".")
        section = settings
        for part in sections:
            section = section[part]
        section[field] = value
    with pytest.raises(ValueError, match=message):
        experiment.experiment(config.from_json(settings), tmp_path / "root", None)
    assert not (tmp_path / "root").exists()
