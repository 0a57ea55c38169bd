"""Llama-3.1-8B's shape, for `rpt.compile`: what eight v5p or sixteen v6e need for it.

    python -m rpt.compile --config=configs/llama3_1_8b.py --topology=v5p:2x2x2

To train, say where weights and documents are, for example with

    python -m rpt.train --workdir=gs://BUCKET/runs/first \
        --config=configs/llama3_1_8b.py:weights=/models/it,documents=omni_math.jsonl

(configs/paper_rpt.py says what documents look like). On v5p:2x2x2, predicted (docs/scaling.md):

    program         HBM of 95 GB   bound by   seconds of a step
    decode          45%            HBM        17.4
    accumulate      55%            compute    20.2
    trunk_backward  33%            compute    0.4
    others          16 to 49%                 0.3
    step                                      38.4, 27,436 thought tokens/s

and on v6e:4x4 87% of 32 GB for decode and 25.7 s, all bound by HBM.

    parameters                  8.03 billion
    layers, width, feed-forward 32, 4096, 14336
    heads, key/value heads      32, 8, of 128
    vocabulary                  128,256
    keys and values, a token    131 kB in bfloat16
    parameters, AdamW           96 GB over all chips; the sampling copy 16.1 GB over the tensor axis
"""

from ml_collections import ConfigDict

from configs import common, paper_rpt
from rpt.model import config as model_config

_SHAPE = common.model(
    vocab_size=128_256,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_width=128,
    ff_width=14_336,
    rope_theta=500_000.0,
    rope_scaling=model_config.Llama3Scaling(8.0, 1.0, 4.0, 8192),
    norm_epsilon=1e-5,
    tied_head=False,
    dtype="bfloat16",
    remat="full",
)


def get_config(arg: str = "") -> ConfigDict:
    config = paper_rpt.of_shape(arg, _SHAPE)
    config.mesh.fsdp, config.mesh.tensor = -1, 2
    config.data.shards = 16  # of up to 16 hosts
    config.train.seq_len = 2048
    config.rollout.think_tokens, config.rollout.answer_tokens = 1984, 64
    config.train.batch_size = 16
    config.train.micro_branches = 4
    return config
