"""All parts of an experiment for real, on the smallest model: from nothing to the report."""

import dataclasses
import json

import pytest

from rpt import (
    config,
    evaluation_records,
    experiment,
    experiment_report,
    pretrain,
    report_data,
    report_html,
    runs,
)
from tests.rpt import tiny_experiment


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
    changed.pretrain.gate.spec = "miniature:?kind=plain&split=validation&max_variables=2"
    changed.pretrain.gate.labels = ("answer/1", "answer/2")
    changed.pretrain.gate.threshold = 0.0
    changed.pretrain.gate.first_step = 8
    changed.pretrain.gate.documents = 2
    changed.pretrain.gate.max_steps = 8
    changed.train.steps = 2
    changed.train.seq_len = 72
    plan = changed.experiment
    plan.claim_part = "stories"
    plan.reference.steps = 4
    for part in (plan.reference, plan.ntp, plan.mixed_sft):
        part.mixture = (("stories", "miniature:?kind=plain&split=train", 1.0),)
        part.batch_size, part.seq_len = 4, 64
    return config.from_config_dict(changed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root, settings = tmp_path_factory.mktemp("experiment"), tiny()
    for part in experiment.PARTS:
        experiment.run_part(settings, root, part)
        assert experiment.is_done(root, part)
    return root, settings


def test_controls_execute_rpts_flops_and_start_from_the_same_base(finished):
    root, settings = finished
    summaries = {
        part: json.loads((root / part / "summary.json").read_text())
        for part in ("base", "rpt", "ntp", "mixed_sft")
    }
    budget = summaries["rpt"]["ledger"]["training_flops"]
    one = pretrain.step_flops(settings.model, settings.experiment.ntp)
    for control in ("ntp", "mixed_sft"):
        assert 0 <= summaries[control]["ledger"]["training_flops"] - budget < one
        command = json.loads((root / control / "command.json").read_text())
        assert command["init"] == str(root / "base")
    assert json.loads((root / "rpt" / "config.json").read_text())["train"]["init"] == str(
        root / "base"
    )


def test_every_arm_is_measured_on_the_same_positions_and_test_is_read_once(finished):
    root, settings = finished
    for split in ("validation", "test"):
        hashes = {
            json.loads((root / "evaluation" / arm / split / "results.json").read_text())[
                "positions"
            ]["sha256"]
            for arm in experiment.ARMS
        }
        assert len(hashes) == 1
    experiment.run_part(settings, root, "evaluate_rpt")  # is done, so nothing happens
    readings = (root / "evaluation" / "test_readings.jsonl").read_text().splitlines()
    assert len(readings) == len(experiment.ARMS)


def test_the_report_is_made_of_what_was_measured(finished):
    root, settings = finished
    found = experiment_report.results(settings, root, experiment.ARMS)
    json.dumps(found, allow_nan=False)
    by_name = {claim["name"]: claim for claim in found["claims"]}
    recorded = {
        arm: evaluation_records.load(root / "evaluation" / arm / "test" / "predictions.jsonl")
        for arm in ("rpt", "base")
    }
    again = evaluation_records.compare(recorded["rpt"], recorded["base"], ">0.2", part="stories")
    claim = by_name["rpt_thought_over_base_thought"]
    assert claim["difference"]["mean"] == pytest.approx(again.mean)
    assert not claim["shown"]  # too few positions, whatever the difference
    assert {"rpt_gated_over_own_no_think_on_english", "rpt_gated_over_own_no_think_on_all"} <= set(
        by_name
    )
    compute = {arm: entry["compute"] for arm, entry in found["arms"].items()}
    assert compute["rpt"]["flops_as_rows"] > compute["rpt"]["flops_executed"]
    assert compute["ntp"]["flops_as_rows"] == compute["ntp"]["flops_executed"]
    assert compute["ntp"]["flops_executed"] > compute["base"]["flops_executed"]
    experiment_report.write(found, root)
    report = (root / "report.md").read_text()
    assert all(claim["what"] in report for claim in found["claims"])
    assert (root / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_made_of_what_an_experiment_writes(finished):
    """Each section reads the files as they really are."""
    root, settings = finished
    runs.write_json(
        root / "results.json", experiment_report.results(settings, root, experiment.ARMS)
    )
    gathered = report_data.gather(root)
    assert not gathered.missing
    assert list(gathered.experiments[0].runs) == list(experiment.ARMS)
    page = report_html.page(gathered, [])
    assert "Nothing here" not in page
    assert "Cannot be shown" not in page
    assert "Elsewhere" not in page  # every cut has its place in the text
    assert 'class="meter"' in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment.claim_part": "novels"}, "novels"),
        ({"evaluate.gate_documents": 0}, "gate_documents"),
        ({"pretrain.gate.labels": ()}, "gate.labels"),
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
