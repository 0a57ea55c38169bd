"""The smallest experiment of all: byte tokens, one layer of width 16, seconds for everything.

    python -m rpt.pretrain --config=tests/rpt/tiny_experiment.py --workdir=...

Spaces make up a quarter of the stories' bytes, so a model that has learned little more than that
is rewarded in some thoughts of a group and not in others.
"""

from ml_collections import ConfigDict

from configs import common
from rpt import cli


class StopAfter(cli.StopSignal):
    """A stop signal that is received between two steps, without a signal."""

    def __init__(self, steps: int):
        self._left = steps

    @property
    def received(self) -> bool:
        self._left -= 1
        return self._left < 0


def get_config(arg: str = "") -> ConfigDict:
    switches = common.parse_arg(arg, init="")
    config = common.base()
    config.seed = 3
    config.model = common.model(
        vocab_size=260,
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_width=8,
        ff_width=32,
    )
    config.data.tokenizer = "bytes"
    config.data.template = common.template("mini")

    stage0 = config.pretrain
    stage0.opening_mixture = (("worked", "miniature:?kind=worked&split=train", 1.0),)
    stage0.opening_steps = 12
    stage0.mixture = (
        ("plain", "miniature:?kind=plain&split=train", 0.5),
        ("worked", "miniature:?kind=worked&split=train", 0.5),
    )
    stage0.steps = 24
    stage0.batch_size = 4
    stage0.seq_len = 64
    stage0.optimizer.learning_rate = 2e-2
    stage0.optimizer.warmup_steps = 2
    stage0.optimizer.decay_steps = 4

    train = config.train
    train.init = switches.init
    train.mixture = (("plain", "miniature:?kind=plain&split=train", 1.0),)
    train.steps = 8
    train.batch_size = 2
    train.seq_len = 48
    train.micro_branches = 4
    train.optimizer.learning_rate = 2e-3
    train.optimizer.warmup_steps = 2
    config.positions.cuts_per_document = 3
    config.positions.low_nats = 0.0
    config.positions.min_context = 8
    config.rollout.group_size = 8
    config.rollout.think_tokens = 4
    config.rollout.chunk_tokens = 8
    config.objective.ntp_weight = 0.5
    config.logging.checkpoint_every_steps = 3
    config.logging.samples_every_steps = 2
    return config
