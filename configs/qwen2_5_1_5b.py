"""Qwen2.5-1.5B's shape, for `rpt.compile`: what a v5e-16 or a v6e-8 needs for it.

    python -m rpt.compile --config=configs/qwen2_5_1_5b.py --topology=v5e:4x4

To train, say where weights and documents are, for example with

    python -m rpt.train --workdir=gs://BUCKET/runs/first \
        --config=configs/qwen2_5_1_5b.py:weights=/models/it,documents=omni_math.jsonl

(configs/paper_rpt.py says what documents look like). On v5e:4x4, predicted (docs/scaling.md):

    program         HBM of 16 GB   bound by   seconds of a step
    decode          65%            HBM        9.1
    accumulate      66%            compute    10.4
    trunk_backward  39%            compute    0.4
    others          12 to 55%                 0.3
    step                                      20.2, 104,505 thought tokens/s

and on v6e:2x4 63% of 32 GB for accumulate and 15.0 s, all bound by HBM.

    parameters                  1.54 billion; head tied to the embedding
    layers, width, feed-forward 28, 1536, 8960
    heads, key/value heads      12, 2, of 128
    vocabulary                  151,936
    keys and values, a token    28.7 kB in bfloat16
    parameters, AdamW           18.5 GB over all chips; the sampling copy 3.1 GB on each
"""

from ml_collections import ConfigDict

from configs import common, paper_rpt

_SHAPE = common.model(
    vocab_size=151_936,
    width=1536,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    head_width=128,
    ff_width=8960,
    rope_theta=1e6,
    norm_epsilon=1e-6,
    qkv_bias=True,
    dtype="bfloat16",
    remat="full",
)


def get_config(arg: str = "") -> ConfigDict:
    config = paper_rpt.of_shape(arg, _SHAPE)
    # Two key/value heads split over two chips at most, and the copy fits whole.
    config.mesh.fsdp, config.mesh.tensor = -1, 1
    config.data.shards = 16  # of up to 16 hosts
    config.train.seq_len = 2048
    config.rollout.think_tokens, config.rollout.answer_tokens = 960, 64
    config.train.batch_size = 64
    config.train.micro_branches = 4
    return config
