"""Tokens and FLOPs by kind, counted as they happen.

One analytic function of shapes, because XLA's cost analysis counts the body of a scan or while
loop once. Everything executed counts: padding, ended branches, groups filtered away. Remat
recompute and, in the training total, evaluation do not.
"""

import dataclasses
import math
from collections.abc import Iterable

from rpt.model import config as config_lib

# Kinds that are training compute; 'eval' is kept apart.
TRAINING_KINDS = ("warmup", "score", "rollout", "update")
KINDS = (*TRAINING_KINDS, "eval")


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Executed forward-or-backward tokens and FLOPs by kind.

    `flops_as_rows` is what the same training would have cost had each branch been a row of its
    own (the papers' accounting); `document_tokens` counts corpus tokens consumed.
    """

    tokens: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    flops: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    flops_as_rows: int = 0
    document_tokens: int = 0

    def add(self, kind: str, tokens: int, flops: int) -> "Ledger":
        return dataclasses.replace(
            self,
            tokens={**self.tokens, kind: self.tokens[kind] + int(tokens)},
            flops={**self.flops, kind: self.flops[kind] + int(flops)},
        )

    def add_rows(self, flops: int) -> "Ledger":
        return dataclasses.replace(self, flops_as_rows=self.flops_as_rows + int(flops))

    def add_documents(self, tokens: int) -> "Ledger":
        return dataclasses.replace(self, document_tokens=self.document_tokens + int(tokens))

    @property
    def training_flops(self) -> int:
        return sum(self.flops[kind] for kind in TRAINING_KINDS)


def crosses_scaling_point(before: Ledger, after: Ledger, per_decade: int) -> bool:
    """Whether training FLOPs passed one of `per_decade` log-spaced points between two ledgers."""
    if not per_decade or not after.training_flops:
        return False

    def index(flops: int) -> int:
        return math.floor(per_decade * math.log10(flops)) if flops else -1

    return index(before.training_flops) != index(after.training_flops)


def forward_flops(
    model: config_lib.ModelConfig, tokens: int, context: float, *, head: bool = True
) -> int:
    """FLOPs of one forward over `tokens` positions that each meet `context` keys.

    Two per multiply-add; matrix products and attention only. Masked keys count where the
    program computes them.
    """
    D, H = model.width, model.head_width
    attention = D * H * (2 * model.num_heads + 2 * model.num_kv_heads)
    mix = 2 * model.num_heads * H * context
    layer = attention + 3 * D * model.ff_width + mix
    per_token = model.num_layers * layer + (D * model.vocab_size if head else 0)
    return int(2 * tokens * per_token)


def trunk_flops(model: config_lib.ModelConfig, batch: int, length: int, passes: int) -> int:
    """B rows of S positions; `passes` is 1 for a forward, 3 for forward and backward."""
    return passes * forward_flops(model, batch * length, length)


def decode_flops(
    model: config_lib.ModelConfig,
    batch: int,
    trunk_length: int,
    decode_steps: Iterable[tuple[int, int, int]],
) -> tuple[int, int]:
    """(tokens, FLOPs) of a rollout from its (positions, branches, cache length) per chunk."""
    tokens = flops = 0
    for positions, branches, cache in decode_steps:
        computed = batch * branches * positions
        tokens += computed
        flops += forward_flops(model, computed, trunk_length + cache + 1)
    return tokens, flops


def branch_update_flops(
    model: config_lib.ModelConfig, trunk_length: int, shapes: Iterable[tuple[int, int, int]]
) -> tuple[int, int]:
    """(tokens, FLOPs) of forward and backward over micro-batches of shape (B, R, T)."""
    tokens = flops = 0
    for B, R, T in shapes:
        computed = B * R * (T - 1)
        tokens += computed
        flops += 3 * forward_flops(model, computed, trunk_length + T - 1)
    return tokens, flops


def row_flops(
    model: config_lib.ModelConfig, prompt_length: int, branch_length: int, trained: bool
) -> int:
    """One branch as its own row: prefill and decode, and forward and backward when trained."""
    length = prompt_length + branch_length
    return (4 if trained else 1) * forward_flops(model, length, length / 2)
