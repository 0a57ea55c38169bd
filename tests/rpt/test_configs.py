"""Every config in configs/ is an experiment; the paper's numbers are the paper's."""

import dataclasses
import importlib
import json
import pathlib
import re
import urllib.parse

import pytest

from configs import common
from data import miniature, skills, sources
from rpt import config, experiment_plan, formats, rewards

FOLDER = pathlib.Path(common.__file__).parent
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "common"))
SPLITS = ("train", "validation", "test")
VARIANTS = [(name, "") for name in NAMES] + [
    ("mini", "seed=3"),
    ("smollm2_pydoc", "boxed,seed=3"),
    ("paper_rpt", "seed=3,weights=/models/a,proxy=/models/b,documents=/texts/c.jsonl"),
]


def build(name: str, arg: str = "") -> config.Config:
    return config.from_config_dict(importlib.import_module(f"configs.{name}").get_config(arg))


def test_the_promised_configs_are_there():
    assert {"mini", "smollm2_pydoc", "paper_rpt"} <= set(NAMES)


@pytest.mark.parametrize(("name", "arg"), VARIANTS)
def test_config_builds_and_its_parts_fit(name, arg):
    experiment = build(name, arg)
    assert experiment.seed == (3 if "seed=3" in arg else 0)
    template = formats.load_template(experiment.data.template)
    assert ("boxed{" in template.suffix) == (experiment.rollout.answer_format == "boxed")
    assert bool(experiment.data.weights) != (experiment.model is not None)
    assert experiment.reward.name in rewards.REWARDS
    assert experiment.train.steps > 0
    assert experiment.train.seq_len > experiment.positions.min_context
    evaluated = (experiment.evaluate.validation, experiment.evaluate.test)
    for mixture, split in zip((experiment.train.mixture, *evaluated), SPLITS):
        assert mixture
        specs = [urllib.parse.unquote(part.spec) for part in mixture]
        assert all(f"split={split}" in spec for spec in specs)
        assert not any(f"split={other}" in spec for spec in specs for other in {*SPLITS} - {split})


@pytest.mark.parametrize("name", NAMES)
def test_what_an_experiment_would_run_can_be_run(name):
    experiment = build(name)
    if experiment.experiment.arms:
        experiment_plan.check(experiment)


def test_the_miniature_has_its_arms_and_controls():
    parts = experiment_plan.parts(build("mini"))
    arms = {name for name, part in parts.items() if part.kind in ("pretrain", "train")}
    assert arms == {"base", "reference", "rpt", "ntp", "mixed_sft"}
    assert parts["ntp"].needs == parts["mixed_sft"].needs == ("base", "rpt")


@pytest.mark.parametrize("name", NAMES)
def test_the_depth_that_tables_call_shown_is_that_of_the_worked_documents(name):
    experiment = build(name)
    if not experiment.experiment.shown_depth:
        assert name != "mini"
        return
    mixtures = (experiment.pretrain.opening_mixture, experiment.pretrain.mixture)
    worked = [p.spec for mixture in mixtures for p in mixture if "kind=worked" in p.spec]
    assert worked
    for opened in map(sources.open_source, worked):
        assert isinstance(opened, miniature.Stories | skills.Skills)
        assert opened.config.worked_depth == experiment.experiment.shown_depth


@pytest.mark.parametrize("name", NAMES)
def test_config_says_how_to_run_it(name):
    module = importlib.import_module(f"configs.{name}")
    assert re.search(rf"--config=configs/{name}\.py", module.__doc__)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_switch_is_refused(name):
    with pytest.raises(ValueError, match="unknown switch 'sede'"):
        build(name, "sede=1")


@pytest.mark.parametrize("name", NAMES)
def test_a_config_survives_its_run_directory(name):
    """config.json is read back as the same experiment."""
    experiment = build(name)
    assert config.from_json(json.loads(json.dumps(dataclasses.asdict(experiment)))) == experiment


def test_paper_rpt_has_the_numbers_of_the_paper():
    """arXiv 2506.08007v1, table 5 and section 3.3; verl's defaults where it is silent."""
    paper = build("paper_rpt")
    train, positions, rollout = paper.train, paper.positions, paper.rollout
    assert train.batch_size * positions.cuts_per_document == 256
    assert rollout.group_size == 8
    assert train.steps == 1000
    assert train.seq_len == 4096
    assert rollout.think_tokens + rollout.answer_tokens == 8192
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (0.8, 1.0, 0)
    assert (rollout.answer_format, rollout.on_budget) == ("boxed", "zero_reward")
    optimizer = train.optimizer
    assert (optimizer.kind, optimizer.learning_rate) == ("adamw", 1e-6)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.999, 0.01)
    assert optimizer.grad_norm_clip == 0.2
    objective, reward = paper.objective, paper.reward
    assert objective.ratio_clip_low == objective.ratio_clip_high == 0.2
    assert (objective.kl_weight, objective.ntp_weight, objective.rl_weight) == (0.0, 0.0, 1.0)
    assert objective.aggregation == "token_mean"
    assert (reward.name, reward.dynamic_from_step) == ("prefix_match", 500)
    assert (reward.normalise, reward.ddof, reward.epsilon) == ("std", 1, 1e-6)
    assert reward.target_groups == 256
    assert train.warmup_steps == 0
    assert train.init == ""
    assert paper.evaluate.bins_nats == (0.5, 1.0, 1.5)
    assert paper.evaluate.documents == 200
    assert pathlib.Path(paper.data.template).stem == "rpt_v0"


@pytest.mark.parametrize("name", ["qwen2_5_1_5b", "llama3_1_8b", "r1_distill_qwen_14b"])
def test_a_shape_is_trained_from_weights_of_it(name):
    given = build(name, "weights=/models/a,documents=/texts/c.jsonl")
    assert (given.data.weights, given.model) == ("/models/a", None)
    assert given.evaluate.reference == "/models/a"
    # No other model need be there, nor one with another tokenizer.
    assert given.positions.proxy == "init"
    assert given.train.mixture[0].spec.startswith("jsonl:/texts/c.jsonl?")


def test_paper_rpt_takes_its_three_parts_from_switches():
    given = build("paper_rpt", "weights=/models/a,proxy=/models/b,documents=/texts/c.jsonl")
    assert (given.data.weights, given.positions.proxy) == ("/models/a", "/models/b")
    assert given.evaluate.reference == "/models/a"
    (part,) = given.train.mixture
    assert part.spec.startswith("jsonl:/texts/c.jsonl?")
