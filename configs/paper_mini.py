"""The paper in miniature."""

from ml_collections import ConfigDict

from configs import common

_CHAIN = {"largest_name_step": 2, "max_variables": 12, "max_depth": 12, "max_words": 104}
_SPARSE = {"skip_weights": "0,0.6,0.3,0.1", "min_questions": 2, "max_questions": 4}
_DENSE = {
    "skip_weights": "0.85,0.1,0.04,0.01",
    "min_questions": 3,
    "max_worked_questions": 4,
    "empty_thought_fraction": 0.0,
    "idle_thought_fraction": 0.06,
}
_SHORT_CHAIN = {"max_variables": 4, "min_variables": 3, "min_questions": 1}
_SHORT = {"min_items": 4, "max_items": 6}
TRAINED = ("chain", "pointer", "lookup")
HELD_OUT, RLVR = "sum", "automaton"


def _spec(name: str, options: dict) -> str:
    return f"{name}:?" + "&".join(f"{key}={value}" for key, value in options.items())


def _puzzles(family: str, kind: str, split: str = "train", short: bool = False) -> str:
    which = {"kind": kind, "split": split}
    if family == "chain":
        style = _DENSE if kind == "worked" else _SPARSE
        return _spec("miniature", which | _CHAIN | style | (_SHORT_CHAIN if short else {}))
    idle = {"idle_thought_fraction": 0.06} if kind == "worked" else {}
    return _spec("skills", {"family": family} | which | idle | (_SHORT if short else {}))


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

    def mixed(plain: float, worked: float, english: float, short: bool = False):
        parts = [(f, _puzzles(f, "plain", short=short), plain / 3) for f in TRAINED]
        parts += [(f"{f}_worked", _puzzles(f, "worked", short=short), worked / 3) for f in TRAINED]
        if english:
            parts.append(("english", "pydoc:?split=train&idle_thoughts=0.06", english))
        return tuple(parts)

    stage0 = config.pretrain
    stage0.opening_mixture = mixed(0.2, 0.8, 0.0, short=True)
    stage0.opening_steps = 300
    stage0.mixture = mixed(0.36, 0.54, 0.1)
    stage0.batch_size = 12
    stage0.seq_len = 256
    stage0.optimizer.kind = "muon"
    stage0.optimizer.learning_rate = 2e-3
    stage0.optimizer.muon_learning_rate = 1e-2
    stage0.optimizer.warmup_steps = 50
    stage0.optimizer.decay_steps = 350
    stage0.gate.mixture = tuple((f, _puzzles(f, "plain", "validation"), 1.0) for f in TRAINED)
    stage0.gate.labels = tuple(
        f"{label}/{depth}" for label in ("answer", "pointer", "lookup") for depth in (1, 2)
    )
    stage0.gate.threshold = 0.8
    stage0.gate.first_step = 650
    stage0.gate.every_steps = 100
    stage0.gate.max_steps = 1650
    config.train.seq_len = 112
    config.rollout.think_tokens = 28
    return config
