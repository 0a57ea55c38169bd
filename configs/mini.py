"""The miniature: reinforcement pre-training on two cores in a quarter of an hour.

make demo
python -m rpt.experiment --config=configs/mini.py --workdir=runs/mini     the same by hand
python -m rpt.pretrain --config=configs/mini.py --workdir=runs/stage0     stage 0 alone
"""

from ml_collections import ConfigDict

from configs import common

# Questions never ask a variable right after its child, so that an answer is not one step from
# the one before it.
_STORY = {"skip_weights": "0,0.6,0.3,0.1", "min_questions": 2, "max_worked_questions": 2}
_SHORT = {"max_variables": 4, "min_variables": 3, "min_questions": 1}


def _stories(kind: str, split: str = "train", **changes) -> str:
    options = {"kind": kind, "split": split, **_STORY, **changes}
    return "miniature:?" + "&".join(f"{name}={value}" for name, value in options.items())


def get_config(arg: str = "") -> ConfigDict:
    switches = common.parse_arg(arg, seed=0)
    config = common.base()
    config.seed = switches.seed
    config.model = common.model(
        vocab_size=704,
        width=128,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        head_width=32,
        ff_width=256,
        rope_theta=1000.0,
    )
    config.data.tokenizer = "miniature:704"
    config.data.template = common.template("mini")

    # Stage 0: short stories first, half of them worked, until thinking works where it is easy.
    stage0 = config.pretrain
    stage0.opening_mixture = (
        ("plain", _stories("plain", **_SHORT), 0.5),
        ("worked", _stories("worked", **_SHORT), 0.5),
    )
    stage0.opening_steps = 250
    stage0.mixture = (
        ("plain", _stories("plain"), 0.4),
        ("worked", _stories("worked"), 0.5),
        ("english", "pydoc:?split=train", 0.1),
    )
    stage0.batch_size = 24
    stage0.seq_len = 128
    stage0.optimizer.kind = "muon"
    stage0.optimizer.learning_rate = 2e-3
    stage0.optimizer.muon_learning_rate = 1e-2
    stage0.optimizer.warmup_steps = 50
    stage0.optimizer.decay_steps = 400
    stage0.gate.spec = _stories("plain", "validation")
    stage0.gate.labels = ("answer/1", "answer/2")
    stage0.gate.threshold = 0.9
    stage0.gate.first_step = 900
    stage0.gate.every_steps = 100
    stage0.gate.max_steps = 1600

    # RPT on plain documents only, with next-token prediction on the trunk in the same step.
    train = config.train
    train.mixture = (
        ("plain", _stories("plain"), 0.9),
        ("english", "pydoc:?split=train", 0.1),
    )
    train.steps = 100
    train.batch_size = 16
    train.seq_len = 96
    train.micro_branches = 32
    train.optimizer.kind = "adamw"
    train.optimizer.learning_rate = 4e-4
    train.optimizer.warmup_steps = 10
    config.positions.cuts_per_document = 4
    config.positions.low_nats = 1.5
    config.positions.high_nats = 2.6
    config.positions.random_fraction = 0.25
    config.rollout.group_size = 16
    config.rollout.think_tokens = 20
    config.rollout.chunk_tokens = 10
    config.reward.normalise = "none"
    config.reward.groups_per_document = 2
    config.objective.ntp_weight = 0.5
    config.objective.ntp_positions = "all"
    config.logging.checkpoint_every_steps = 200
    return config
