"""A real model on real text: RPT of SmolLM2-135M-Instruct, and its control, as an experiment.

    python -m rpt.fetch smollm2
    python -m rpt.experiment --config=configs/smollm2_docstrings.py --workdir=runs/docstrings

Text. Docstrings of Python's standard library, a document a module; modules are held out whole, with
what is nearly the same. The model has probably seen all of it, which both arms share.

Arms. `weights` is the model as published, `base` the same behind the format warm-up
(rpt/warmup.py): 960 thoughts that it wrote itself, without which none of 96 was closed. From there
`rpt`, `rpt_ntp` with next-token prediction on the trunk, and `ntp` at the executed FLOPs of
`rpt_ntp`. Settings are those of configs/smollm2_pydoc.py; nobody tuned any of the arms.
"""

from ml_collections import ConfigDict

from configs import common, smollm2_pydoc

# A window of 104 tokens has a few hard ones; of short modules there is one window.
_SPLITS = "validation=0.1&test=0.25"


def _documents(split: str) -> tuple[tuple[str, str, float], ...]:
    return (("docstrings", f"docstrings?split={split}&{_SPLITS}", 1.0),)


def get_config(arg: str = "") -> ConfigDict:
    switches = common.parse_arg(arg, seed=0)
    config = smollm2_pydoc.get_config(f"seed={switches.seed}")
    train = config.train
    train.mixture = _documents("train")
    train.steps = 120
    train.optimizer.decay_steps = train.steps // 2
    config.objective.ntp_weight = 0.0
    config.positions.proxy = "init"

    evaluate = config.evaluate
    evaluate.validation, evaluate.test = _documents("validation"), _documents("test")
    evaluate.documents = 150
    evaluate.gate_documents = 12
    evaluate.positions_per_document = 10
    evaluate.other_positions_per_document = 1
    evaluate.batch_size = 8
    evaluate.ablations = ("none", "drop", "shuffle", "swap", "truncate")

    plan = config.experiment
    plan.hypothesis = (
        "On hard tokens of held-out docstrings, RPT with thought exceeds its base with thought: "
        "the reward is learned from. Whether thinking pays, which is the same against no thought "
        "of the published weights and against next-token prediction continued at equal executed "
        "FLOPs, is open; at thoughts of 16 tokens and 120 steps we expect that it does not."
    )
    plan.claim_part = "docstrings"
    plan.reference = "fetch:smollm2"
    plan.processes = 1  # a process has up to 10 GB
    plan.arms = _arms(config)
    thought, direct = "thought_argmax", "no_think"
    claims = (
        ("rpt", thought, "base", thought, True),
        ("rpt", thought, "rpt", direct, False),
        ("rpt", thought, "weights", direct, False),
        ("rpt", thought, "ntp", direct, False),
        ("rpt_ntp", thought, "ntp", direct, False),
        ("rpt_ntp", direct, "ntp", direct, False),
        ("base", direct, "weights", direct, False),
    )
    plan.claims = tuple(common.claim(*pair, plan.claim_part, goal=goal) for *pair, goal in claims)
    return config


def _arms(config: ConfigDict) -> tuple[dict, ...]:
    ntp = common.base().pretrain
    ntp.mixture = config.train.mixture
    ntp.batch_size, ntp.seq_len = 8, config.train.seq_len
    ntp.optimizer.learning_rate = config.train.optimizer.learning_rate
    ntp.optimizer.warmup_steps = config.train.optimizer.warmup_steps
    untouched = common.base().pretrain
    untouched.mixture = config.train.mixture
    trained = {"train.warmup_steps": 0}
    return (
        common.arm("weights", "SmolLM2 as published", "pretrain", {"pretrain": untouched}),
        common.arm("base", "behind the format warm-up", "train", {"train.steps": 0}),
        common.arm("rpt", "RPT", "train", trained, init="base"),
        common.arm(
            *("rpt_ntp", "RPT + trunk NTP", "train", trained | {"objective.ntp_weight": 0.5}),
            init="base",
        ),
        common.arm(
            *("ntp", "continued NTP", "pretrain", {"pretrain": ntp}),
            init="base",
            flops_of="rpt_ntp",
        ),
    )
