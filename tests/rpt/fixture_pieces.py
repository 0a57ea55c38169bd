"""Pieces of experiments that were never run: made-up answers, real tables."""

import functools

import numpy as np

from rpt import evaluation, experiment_config, experiment_pieces, rewards
from rpt.model import config as model_config

MODEL = model_config.ModelConfig(
    vocab_size=264, width=32, num_layers=2, num_heads=2, num_kv_heads=1, head_width=16, ff_width=32
)
# Labels and how many positions each has; answer/10 is to stand behind answer/2.
_LABELS = {"label:answer/10": (0, 10), "label:answer/2": (10, 40), "label:noise": (40, 60)}


def arm(name: str, command: str = "pretrain", **fields) -> experiment_config.ArmConfig:
    return experiment_config.ArmConfig(name, f"the {name}", command, **fields)


def claim(a: str, mode_a: str, b: str, mode_b: str, **fields) -> experiment_config.ClaimConfig:
    fields = {"name": f"{a}_{mode_a}_over_{b}_{mode_b}", "part": "stories", **fields}
    return experiment_config.ClaimConfig(a=a, mode_a=mode_a, b=b, mode_b=mode_b, **fields)


ARMS = (
    arm("base"),
    arm("reference", evaluated=False, seed_offset=1000),
    arm("ntp", init="base", flops_of="rpt", flops_factor=2.0),
    arm("rpt", "train", init="base", curve="by reward"),
    arm("rpt_rlvr", "train", init="rpt"),
)
CLAIMS = (
    claim("rpt", "thought_argmax", "base", "thought_argmax", goal=True),
    claim("rpt", "gated", "rpt", "no_think", bin="gate"),
    claim("rpt", "thought_argmax", "ntp", "no_think", bin="label:answer/2"),
)


def plan(**fields) -> experiment_config.ExperimentConfig:
    given = {
        "hypothesis": "Thinking pays.",
        "claim_part": "stories",
        "least_positions": 100,
        "reference": "reference",
        "arms": ARMS,
        "claims": CLAIMS,
    }
    return experiment_config.ExperimentConfig(**{**given, **fields})


def measured(thought: float, direct: float, count: int = 240) -> evaluation.Measured:
    """Stories of four positions, then a part `rlvr`; that share of each twenty is right."""
    place_P = np.arange(count)
    thought_P, direct_P = (place_P % 20 < 20 * share for share in (thought, direct))
    story_P, group = place_P < count // 2 + 40, 2
    labels = {
        name: story_P & (place_P >= low) & (place_P < high) for name, (low, high) in _LABELS.items()
    }

    def both(value_P: np.ndarray, dtype: type = float) -> np.ndarray:
        return np.repeat(value_P[:, None], group, axis=1).astype(dtype)

    nothing_PG = both(place_P >= count, int)
    return evaluation.Measured(
        part_P=np.where(story_P, "stories", "rlvr"),
        document_id_P=place_P // 4,
        cut_P=place_P % 4,
        bins={
            "all": place_P >= 0,
            ">1.5": place_P % 8 != 0,
            ">1.0": place_P % 16 != 0,
            ">0.5": place_P >= 0,
            "gate": place_P % 3 == 0,
            **labels,
        },
        gate_entropy_P=(place_P % 7) / 2 + 0.1234567891,
        raw_reward_P=direct_P * 1.0,
        raw_prob_P=direct_P * 0.5,
        header_reward_P=direct_P * 1.0,
        header_prob_P=direct_P * 0.5,
        thought_P=place_P >= 0,
        sampled_reward_PG=both(thought_P),
        argmax_reward_PG=both(thought_P),
        target_prob_PG=both(thought_P),
        diagnosis_PG=nothing_PG + rewards.CATEGORIES.index("right"),
        over_budget_PG=nothing_PG > 0,
        thought_tokens_PG=nothing_PG + 3,
        branch_tokens_PG=nothing_PG + 5,
    )


@functools.cache
def _tables(thought: float, direct: float) -> dict:
    """What an evaluation says about these answers, when thinking above 1 nat."""
    answers = measured(thought, direct)
    costs = evaluation.Costs(MODEL, 1, 1, 64.0)
    return evaluation.tables(answers, costs, 0, dict.fromkeys(answers.parts(), 1.0))


def _source(arm: str, read: str) -> str:
    return "stories" if arm in ("base", "rpt", "ntp") else read


def _no_tables(threshold: float, gain_shown: bool) -> dict:
    """What a claim asks for."""
    reported = {"threshold": threshold, "gain_shown": gain_shown}
    return {"parts": {}, "gated": {"stories": {"reported": reported}}}


def piece(
    made: experiment_config.ExperimentConfig,
    name: str,
    seed: int = 0,
    *,
    thought: float = 0.5,
    direct: float = 0.1,
    passed: bool = True,
    threshold: float = 1.0,
    gain_shown: bool = True,
    claimed: dict | None = None,
    tables: bool = False,
    read: str = "automata",
) -> experiment_pieces.Piece:
    """Of an arm whose every run spent 10^12 FLOPs in 60 seconds; `tables` cost a second.

    Its own run reads a source that nothing before it has read, unless `read` says otherwise;
    those of base, rpt and ntp read the stories.
    """
    content = _tables(thought, direct) if tables else _no_tables(threshold, gain_shown)
    stages = [
        {
            "arm": stage,
            "command": made.arm(stage).command,
            "ledger": {
                "training_flops": 10**12,
                "flops_as_rows": 2 * 10**12,
                "document_tokens": 10**6,
            },
            "wall_seconds": 60.0,
            "data": {"main": {f"epochs/{_source(stage, read)}": 0.5}, "opening": None},
            "parameters": 1000,
            "gate": {"threshold": 0.8, "accuracy": 0.9, "passed": passed}
            if stage == "base"
            else None,
        }
        for stage in made.chain(name)
    ]
    return experiment_pieces.Piece(
        {
            "schema": 2,
            "arm": name,
            "seed": seed,
            "commit": "0123456",
            "time": "2026-01-01T00:00:00+0000",
            "plan": experiment_pieces.plan_json(made),
            "claimed": claimed,
            "renewals": [],
            "stages": stages,
            "evaluation": {
                "settings": {"bins_nats": [0.5, 1.0, 1.5]},
                "test_reading": 1,
                "eval_flops": 1,
                "seconds": 1.0,
                **content,
                "params_sha256": f"{name}{seed}",
                "positions_sha256": f"positions {seed}",
                "reference_sha256": f"reference {seed}",
            },
            "history": {"step": [1, 2], "accuracy": [0.1, 0.2], "no_think_accuracy": [0.1, 0.1]},
            "positions": experiment_pieces.pack(measured(thought, direct)),
        }
    )
