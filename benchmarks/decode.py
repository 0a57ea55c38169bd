"""Decoding: tokens per second against the number of branches, beside what the machine allows.

    python -m benchmarks.decode --branches=8,32,128

One document of 512 tokens; R branches with their cuts spread over it; SmolLM2-135M's shape. The
bound is measured in the same process: the matrix products of one step alone, chained, at R rows,
give the machine's rate at that row count; rate / FLOPs per token (head, attention to what a branch
sees of trunk and past included) is what decoding would reach if nothing but the products that it
needs took time.
`share` is the part of it that decoding reaches. `prefill` is the trunk pass with its entropies.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import report, workloads
from rpt import cli, ledger, rollout, scoring
from rpt.model import decoding

_BRANCHES = flags.DEFINE_list("branches", ["8", "32", "64", "128", "256"], "Numbers of branches.")
_TRUNK = flags.DEFINE_integer("trunk", 512, "Tokens of the document.")
_NEW = flags.DEFINE_integer("new_tokens", 32, "Tokens of each branch.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_WEIGHTS = flags.DEFINE_string("weights", "", "Such as fetch:smollm2; random when empty.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed rollouts, after one that compiles.")


@functools.partial(jax.jit, static_argnames=("steps",))
def products(copy: decoding.SamplingCopy, x_MD: jax.Array, steps: int) -> jax.Array:
    """The matrix products of `steps` decode steps, each fed with a slice of the one before."""

    def body(_, x_MD):
        for layer in copy.layers:
            D, _, _, H = layer.qkv_DKXH.shape
            N, F = layer.output_NHD.shape[0], layer.down_FD.shape[0]
            mixed = (x_MD @ layer.qkv_DKXH.reshape(D, -1))[:, : N * H]
            x_MD = mixed @ layer.output_NHD.reshape(-1, D)
            x_MD = (x_MD @ layer.gate_up_D2F.reshape(D, -1))[:, :F] @ layer.down_FD
        logits_MV = jnp.einsum("MD,VD->MV", x_MD, copy.unembedding_VD)
        return logits_MV[:, : x_MD.shape[1]]

    return jax.lax.fori_loop(0, steps, body, x_MD)


def product_flops(copy: decoding.SamplingCopy) -> int:
    """Of one row of one step."""
    matrices = [
        w
        for layer in copy.layers
        for w in (layer.qkv_DKXH, layer.output_NHD, layer.gate_up_D2F, layer.down_FD)
    ]
    return 2 * sum(w.size for w in [*matrices, copy.unembedding_VD])


def main(argv: list[str]) -> None:
    del argv
    model, params = workloads.load(_WEIGHTS.value, _DTYPE.value)
    S, T = _TRUNK.value, _NEW.value
    document = workloads.document(model, S)[None]
    places = np.arange(S, dtype=np.int32)[None]
    inputs = (document, np.ones_like(document), places)
    repeats = _REPEATS.value

    def prefill():
        return scoring.score_trunk(model, params, *inputs)

    prefill_seconds = report.seconds(prefill, repeats)
    _, kv = prefill()
    copy = decoding.sampling_copy(model, params)
    tables = workloads.tables(model)
    rows = []
    for R in map(int, _BRANCHES.value):
        cut_BC = np.linspace(S // 4, S - 1, R).astype(np.int32)[None]
        workload = workloads.Workload(S, (), 1, T)
        decode_steps = []

        def think(cut_BC=cut_BC, workload=workload, decode_steps=decode_steps):
            result = rollout.rollout(
                model, workloads.settings(workload, 1), rollout.make_sampler(model, params, kv),
                tables, cut_BC, np.ones_like(cut_BC, bool), seed=0, step=0,
                document_ids_B=np.array([0]),
            )  # fmt: skip
            decode_steps[:] = result.decode_steps
            return result.tokens_BRT

        seconds = report.seconds(think, repeats)
        tokens, _ = ledger.decode_flops(model, 1, S, decode_steps)
        # Not the ledger's FLOPs, which count masked keys: computing them is no merit.
        flops = ledger.forward_flops(model, tokens, cut_BC.mean() + (T + 1) / 2)
        x_MD = jnp.ones((R, model.width), model.dtype)
        alone = report.seconds(lambda x_MD=x_MD: products(copy, x_MD, 8), repeats) / 8
        rate = R * product_flops(copy) / alone
        bound = rate / (flops / tokens)
        rows.append(
            {
                "branches": R,
                "tokens/s": tokens / seconds,
                "share": tokens / seconds / bound,
                "bound tokens/s": bound,
                "products GFLOP/s": rate / 1e9,
                "ms/step": 1e3 * seconds * R / tokens,
                "prefill tokens/s": S / prefill_seconds,
                "peak_GB": report.peak_bytes() / 1e9,
            }
        )
    title = f"decode, trunk of {S}, {T} new tokens per branch, {_DTYPE.value}"
    report.show(title, rows)


if __name__ == "__main__":
    cli.run(main)
