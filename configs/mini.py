"""The miniature: reinforcement pre-training on two cores in twenty minutes (docs/results.md).

make demo
python -m rpt.experiment --config=configs/mini.py --workdir=runs/mini     the same by hand
python -m rpt.pretrain --config=configs/mini.py --workdir=runs/stage0     stage 0 alone
"""

from ml_collections import ConfigDict

from configs import common
from data import miniature

# Plain stories, RPT's and the test's, never ask a variable right after its child, so that no
# answer is one step from the one before it. Worked stories, which teach thinking, ask densely;
# their empty thoughts before other words teach that thinking there changes nothing.
_SPARSE = {"skip_weights": "0,0.6,0.3,0.1", "min_questions": 2, "max_worked_questions": 2}
_DENSE = {
    "skip_weights": "0.85,0.1,0.04,0.01",
    "min_questions": 3,
    "max_worked_questions": 4,
    "empty_thought_fraction": 0.0,
    "idle_thought_fraction": 0.06,
}
_SHORT = {"max_variables": 4, "min_variables": 3, "min_questions": 1}


def _stories(kind: str, split: str = "train", **changes) -> str:
    style = _DENSE if kind == "worked" else _SPARSE
    options = {"kind": kind, "split": split, **style, **changes}
    return "miniature:?" + "&".join(f"{name}={value}" for name, value in options.items())


def get_config(arg: str = "") -> ConfigDict:
    switches = common.parse_arg(arg, seed=0)
    config = common.base()
    config.seed = switches.seed
    config.model = common.miniature_model(vocab_size=704)
    config.data.tokenizer = "miniature:704"
    config.data.template = common.template("mini")

    # Stage 0: short stories first, most of them worked, until thinking works where it is easy.
    stage0 = config.pretrain
    stage0.opening_mixture = (
        ("stories", _stories("plain", **_SHORT), 0.2),
        ("worked", _stories("worked", **_SHORT), 0.8),
    )
    stage0.opening_steps = 200
    stage0.mixture = (
        ("stories", _stories("plain"), 0.36),
        ("worked", _stories("worked"), 0.54),
        ("english", "pydoc:?split=train", 0.1),
    )
    stage0.batch_size = 16
    stage0.seq_len = 192
    common.miniature_stage0_optimizer(stage0.optimizer)
    stage0.gate.mixture = (("stories", _stories("plain", "validation"), 1.0),)
    stage0.gate.labels = ("answer/1", "answer/2")
    stage0.gate.threshold = 0.8
    stage0.gate.first_step = 650
    stage0.gate.every_steps = 100
    stage0.gate.max_steps = 1250

    plain = (
        ("stories", _stories("plain"), 0.9),
        ("english", "pydoc:?split=train", 0.1),
    )

    # RPT on plain documents only, with next-token prediction on the trunk in the same step.
    train = config.train
    train.mixture = plain
    train.steps = 60
    train.batch_size = 16
    train.seq_len = 96
    train.micro_branches = 8
    train.optimizer.kind = "adamw"
    train.optimizer.learning_rate = 5e-4
    train.optimizer.warmup_steps = 10
    train.optimizer.decay_steps = 30
    config.positions.cuts_per_document = 4
    config.positions.low_nats = 1.5
    config.positions.high_nats = 2.6
    config.positions.random_fraction = 0.1
    config.rollout.group_size = 16
    config.rollout.think_tokens = 20
    config.rollout.chunk_tokens = 10
    config.reward.normalise = "none"
    config.reward.groups_per_document = 2
    config.objective.ntp_weight = 0.5
    config.objective.ntp_positions = "all"

    # The table: every arm on the same positions of held-out stories, English apart.
    evaluate = config.evaluate
    for split in ("validation", "test"):
        evaluate[split] = (
            ("stories", _stories("plain", split), 1.0),
            ("english", f"pydoc:?split={split}", 0.15),
        )
    evaluate.documents = 270
    evaluate.gate_documents = 40
    evaluate.positions_per_document = 8
    evaluate.other_positions_per_document = 1
    evaluate.batch_size = 32
    plan = config.experiment
    plan.hypothesis = (
        "Where the next token needs several steps of reasoning, a small model that was shown short "
        "thoughts learns from reward alone, on plain text, to think better and further: on hard "
        "test tokens of the stories RPT with thought exceeds its base with thought, its own "
        "prediction without, and next-token prediction continued at equal executed FLOPs; and "
        "with thoughts only where its entropy is high it is better on all tokens."
    )
    plan.claim_part = "stories"
    plan.reference = "reference"
    plan.shown_depth = miniature.MiniatureConfig.worked_depth

    # The reference, and the controls, which execute RPT's FLOPs: continued next-token prediction,
    # and Mixed SFT, which continues stage 0's own mixture with worked stories.
    reference = _pretraining(plain)
    reference.steps = 300
    reference.optimizer = stage0.optimizer.copy_and_resolve_references()
    reference.optimizer.decay_steps = 100
    ntp, mixed_sft = _pretraining(plain), _pretraining(stage0.mixture)
    for control in (ntp, mixed_sft):
        control.optimizer.learning_rate = 4e-4
        control.optimizer.warmup_steps = 10
    continued = {"command": "pretrain", "init": "base", "flops_of": "rpt"}
    plan.arms = (
        common.arm("base", "base (stage 0)", "pretrain"),
        common.arm(
            *("reference", "reference", "pretrain", {"pretrain": reference}),
            seed_offset=1000,
            evaluated=False,
        ),
        common.arm("rpt", "RPT + trunk NTP", "train", init="base"),
        common.arm("ntp", "continued NTP", changes={"pretrain": ntp}, **continued),
        common.arm("mixed_sft", "Mixed SFT", changes={"pretrain": mixed_sft}, **continued),
    )
    plan.claims = _claims()
    config.logging.checkpoint_every_steps = 250
    return config


def _pretraining(mixture) -> ConfigDict:
    """A section of its own, in batches as stage 0's."""
    section = common.base().pretrain
    section.mixture = mixture
    section.batch_size, section.seq_len = 16, 192
    return section


def _claims() -> tuple[dict, ...]:
    """Hard tokens of the stories; all tokens of them, thinking where it pays; English."""
    thought, sampled, direct, gated = "thought_argmax", "thought_sample", "no_think", "gated"
    hard = (
        ("rpt_thought_over_base_thought", thought, "base", thought, True),
        ("rpt_sampled_over_base_sampled", sampled, "base", sampled, False),
        ("rpt_thought_over_own_no_think", thought, "rpt", direct, True),
        ("rpt_thought_over_base_no_think", thought, "base", direct, False),
        ("rpt_thought_over_ntp", thought, "ntp", direct, True),
        ("rpt_thought_over_ntp_thought", thought, "ntp", thought, False),
        ("rpt_thought_over_mixed_sft_thought", thought, "mixed_sft", thought, False),
    )
    everywhere = (
        ("rpt_gated_over_own_no_think", "stories", "rpt", direct, True),
        ("rpt_gated_over_ntp", "stories", "ntp", direct, True),
        ("rpt_gated_over_base_gated", "stories", "base", gated, False),
        ("rpt_gated_over_ntp_gated", "stories", "ntp", gated, False),
        ("rpt_gated_over_mixed_sft_gated", "stories", "mixed_sft", gated, False),
        ("rpt_gated_over_own_no_think_on_all", "all", "rpt", direct, False),
        ("rpt_gated_over_own_no_think_on_english", "english", "rpt", direct, False),
    )
    return (
        *(
            {"name": name, "a": "rpt", "mode_a": mode_a, "b": b, "mode_b": mode_b}
            | {"part": "stories", "goal": goal}
            for name, mode_a, b, mode_b, goal in hard
        ),
        *(
            {"name": name, "a": "rpt", "mode_a": gated, "b": b, "mode_b": mode_b}
            | {"part": part, "bin": "gate", "goal": goal}
            for name, part, b, mode_b, goal in everywhere
        ),
    )
