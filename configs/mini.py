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
    seed = switches.seed
    return ConfigDict(
        {
            "seed": seed,
            "model": {
                "vocab_size": 704,
                "width": 128,
                "num_layers": 3,
                "num_heads": 4,
                "num_kv_heads": 4,
                "head_width": 32,
                "ff_width": 256,
                "rope_theta": 1000.0,
            },
            "data": {"tokenizer": "miniature:704", "template": common.template("mini")},
            "pretrain": {
                "opening_mixture": (
                    ("plain", _stories("plain", **_SHORT), 0.5),
                    ("worked", _stories("worked", **_SHORT), 0.5),
                ),
                "opening_steps": 250,
                "mixture": (
                    ("plain", _stories("plain"), 0.4),
                    ("worked", _stories("worked"), 0.5),
                    ("english", "pydoc:?split=train", 0.1),
                ),
                "batch_size": 24,
                "seq_len": 128,
                "optimizer": {
                    "kind": "muon",
                    "learning_rate": 2e-3,
                    "muon_learning_rate": 1e-2,
                    "warmup_steps": 50,
                    "decay_steps": 400,
                },
                "gate": {
                    "spec": _stories("plain", "validation"),
                    "labels": ("answer/1", "answer/2"),
                    "threshold": 0.9,
                    "first_step": 900,
                    "every_steps": 100,
                    "max_steps": 1600,
                },
            },
            "train": {
                "mixture": (
                    ("plain", _stories("plain"), 0.9),
                    ("english", "pydoc:?split=train", 0.1),
                ),
                "steps": 100,
                "batch_size": 16,
                "seq_len": 96,
                "micro_branches": 32,
                "t_multiple": 8,
                "optimizer": {"kind": "adamw", "learning_rate": 4e-4, "warmup_steps": 10},
            },
            "positions": {
                "cuts_per_document": 4,
                "low_nats": 1.5,
                "high_nats": 2.6,
                "random_fraction": 0.25,
                "min_context": 8,
            },
            "rollout": {
                "group_size": 16,
                "think_tokens": 20,
                "chunk_tokens": 10,
                "temperature": 1.0,
            },
            "reward": {"normalise": "none", "groups_per_document": 2},
            "objective": {"ntp_weight": 0.5, "ntp_positions": "all"},
            "logging": {"checkpoint_every_steps": 200},
        }
    )
