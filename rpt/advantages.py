"""Group advantages and the choice of groups that carry a gradient.

A group is the G thoughts at one cut. GRPO (https://arxiv.org/abs/2402.03300): (r - mean) / (std
+ epsilon); Dr.GRPO (https://arxiv.org/abs/2503.20783): r - mean; RLP
(https://arxiv.org/abs/2510.01265): G / (G - 1) (r - mean), which is the reward minus the mean
of the others. Positive means: make this thought more likely.

Letters: B documents, C cuts per document, G thoughts per cut.
"""

import dataclasses
from typing import Literal

import numpy as np

Normalise = Literal["std", "none"]


def group_advantages(
    reward_BCG: np.ndarray,
    *,
    normalise: Normalise,
    ddof: int,
    epsilon: float,
    leave_one_out: bool,
    valid_BCG: np.ndarray | None = None,
) -> np.ndarray:
    """Advantages of each thought within its group, float32 [B, C, G].

    Args:
      reward_BCG: Rewards.
      normalise: 'std' divides by the group's standard deviation plus epsilon.
      ddof: 0 (population) or 1 (unbiased, as torch.std) for that deviation.
      epsilon: Added to the deviation.
      leave_one_out: Multiply by n / (n - 1), n the group's valid thoughts.
      valid_BCG: Thoughts that count; the others take no part in mean and deviation, may hold
        any reward, and have advantage 0.

    A group whose valid rewards are all equal has advantage exactly 0: decided by max == min,
    because the mean of equal floats need not equal them and dividing by epsilon would blow the
    rounding up.

    Raises:
      ValueError: a bad option, or a valid reward that is not finite.
    """
    if normalise not in ("std", "none"):
        raise ValueError(f"normalise must be 'std' or 'none', not {normalise!r}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, not {ddof!r}")
    reward_BCG, valid_BCG = _checked(reward_BCG, valid_BCG)
    mixed_BC1 = ~_all_equal(reward_BCG, valid_BCG)[..., None]
    # Groups that are not mixed divide by 1 instead of by something that may be 0, and are
    # masked at the end.
    count_BC1 = np.where(mixed_BC1, valid_BCG.sum(axis=-1, keepdims=True), 2)
    reward_BCG = np.where(valid_BCG, reward_BCG, 0.0)
    mean_BC1 = reward_BCG.sum(axis=-1, keepdims=True) / count_BC1
    advantage_BCG = reward_BCG - mean_BC1
    if normalise == "std":
        squares_BC1 = np.where(valid_BCG, advantage_BCG**2, 0.0).sum(axis=-1, keepdims=True)
        std_BC1 = np.sqrt(squares_BC1 / (count_BC1 - ddof))
        advantage_BCG = advantage_BCG / np.where(mixed_BC1, std_BC1 + epsilon, 1.0)
    if leave_one_out:
        advantage_BCG = advantage_BCG * (count_BC1 / (count_BC1 - 1))
    return np.where(mixed_BC1 & valid_BCG, advantage_BCG, 0.0).astype(np.float32)


def _checked(reward_BCG: np.ndarray, valid_BCG: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Rewards in float64 (which keeps float32 equality) and a mask of the same shape."""
    reward_BCG = np.asarray(reward_BCG, np.float64)
    if reward_BCG.ndim != 3:
        raise ValueError(f"rewards must be [B, C, G], not of shape {reward_BCG.shape}")
    if valid_BCG is None:
        valid_BCG = np.ones(reward_BCG.shape, bool)
    valid_BCG = np.asarray(valid_BCG, bool)
    if valid_BCG.shape != reward_BCG.shape:
        raise ValueError(f"valid_BCG is {valid_BCG.shape}, rewards are {reward_BCG.shape}")
    if not np.isfinite(reward_BCG[valid_BCG]).all():
        raise ValueError("rewards must be finite; a valid one is infinite or not a number")
    return reward_BCG, valid_BCG


def _all_equal(reward_BCG: np.ndarray, valid_BCG: np.ndarray) -> np.ndarray:
    """bool [B, C]: all valid rewards of the group are equal (also with one or none)."""
    high_BC = np.where(valid_BCG, reward_BCG, -np.inf).max(axis=-1, initial=-np.inf)
    low_BC = np.where(valid_BCG, reward_BCG, np.inf).min(axis=-1, initial=np.inf)
    return high_BC <= low_BC


def select_groups(
    reward_BCG: np.ndarray, valid_BC: np.ndarray | None = None, max_groups: int | None = None
) -> np.ndarray:
    """The groups to train on: flat indices b * C + c, int64, highest reward variance first.

    Groups that are not valid or have equal rewards are dropped. Ties keep the order of the
    documents.

    Args:
      reward_BCG: Rewards.
      valid_BC: Slots that hold a cut; all by default.
      max_groups: Keep at most so many.
    """
    if max_groups is not None and max_groups < 0:
        raise ValueError(f"max_groups must not be negative, got {max_groups}")
    mask_BC = _group_mask(reward_BCG, valid_BC)
    reward_BCG, valid_BCG = _checked(reward_BCG, _thought_mask(reward_BCG, mask_BC))
    usable = np.flatnonzero(~_all_equal(reward_BCG, valid_BCG).reshape(-1))
    rewards = np.sort(reward_BCG.reshape(-1, reward_BCG.shape[-1])[usable], axis=-1)
    rewards = rewards - rewards[:, :1]
    # G^2 times the variance. Sorted and in this form it is exact for 0/1 rewards, so that
    # groups with equal counts, or with k and G - k right, really tie.
    spread = rewards.shape[-1] * (rewards**2).sum(axis=-1) - rewards.sum(axis=-1) ** 2
    ranked = usable[np.argsort(-spread, kind="stable")]
    return ranked if max_groups is None else ranked[:max_groups]


def _group_mask(reward_BCG: np.ndarray, valid_BC: np.ndarray | None) -> np.ndarray:
    """valid_BC as a bool array that fits the rewards; all valid where it is None."""
    shape_BC = np.shape(reward_BCG)[:2]
    mask_BC = np.ones(shape_BC, bool) if valid_BC is None else np.asarray(valid_BC, bool)
    if mask_BC.shape != shape_BC:
        raise ValueError(f"valid_BC is {mask_BC.shape}, groups are {shape_BC}")
    return mask_BC


def _thought_mask(reward_BCG: np.ndarray, mask_BC: np.ndarray) -> np.ndarray:
    return np.broadcast_to(mask_BC[..., None], np.shape(reward_BCG))


@dataclasses.dataclass(frozen=True)
class GroupFractions:
    """Shares of the valid groups; with 0/1 rewards only mixed ones (0 < k < G) have a gradient."""

    all_wrong: float
    mixed: float
    all_right: float


def group_fractions(right_BCG: np.ndarray, valid_BC: np.ndarray | None = None) -> GroupFractions:
    """Counts groups by how many thoughts are right (bool or 0/1); 0 if no group is valid."""
    right_BCG = np.asarray(right_BCG)
    if right_BCG.dtype != bool and not np.isin(right_BCG, (0, 1)).all():
        raise ValueError("group_fractions needs right or wrong (0 or 1), not graded rewards")
    right = right_BCG.astype(bool)[_group_mask(right_BCG, valid_BC)]
    total = max(len(right), 1)
    all_wrong, all_right = int((~right.any(axis=-1)).sum()), int(right.all(axis=-1).sum())
    return GroupFractions(
        all_wrong=all_wrong / total,
        mixed=(len(right) - all_wrong - all_right) / total,
        all_right=all_right / total,
    )


def zero_variance_fraction(reward_BCG: np.ndarray, valid_BC: np.ndarray | None = None) -> float:
    """Share of the valid groups whose rewards are all equal; 0 if no group is valid."""
    mask_BC = _group_mask(reward_BCG, valid_BC)
    reward_BCG, valid_BCG = _checked(reward_BCG, _thought_mask(reward_BCG, mask_BC))
    equal_BC = _all_equal(reward_BCG, valid_BCG) & mask_BC
    return float(equal_BC.sum() / max(int(mask_BC.sum()), 1))
