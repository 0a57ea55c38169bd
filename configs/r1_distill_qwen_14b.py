"""R1-Distill-Qwen-14B's shape at the RPT paper's lengths, for `rpt.compile`: a v5p-128's 64 chips.

    python -m rpt.compile --config=configs/r1_distill_qwen_14b.py --topology=v5p:4x4x4

Prompts of 4,096 tokens, responses of 8,192, groups of 8, 256 questions a step (arXiv 2506.08007).
The settings of `configs/paper_rpt.py` with a mesh; to train, give the switches `weights`,
`documents` and, as the paper, `proxy`, which are explained there. On v5p:4x4x4, predicted
(docs/scaling.md):

    program         HBM of 95 GB   bound by   seconds of a step
    decode          72%            HBM        144
    accumulate      49%            compute    101
    trunk_backward  21%            compute    0.8
    others           5 to 67%                 0.7
    step                                      246, 68,271 thought tokens/s

    parameters                  14.8 billion
    layers, width, feed-forward 48, 5120, 13824
    heads, key/value heads      40, 8, of 128
    vocabulary                  152,064
    keys and values, a token    197 kB in bfloat16: 1.6 GB a branch, 3.3 TB for all 2,048
    parameters, AdamW           177 GB over all chips; the sampling copy 29.5 GB over tensor
"""

from ml_collections import ConfigDict

from configs import common, paper_rpt

_SHAPE = common.model(
    vocab_size=152_064,
    width=5120,
    num_layers=48,
    num_heads=40,
    num_kv_heads=8,
    head_width=128,
    ff_width=13_824,
    rope_theta=1e6,
    norm_epsilon=1e-5,
    qkv_bias=True,
    tied_head=False,
    dtype="bfloat16",
    remat="full",
)


def get_config(arg: str = "") -> ConfigDict:
    config = paper_rpt.of_shape(arg, _SHAPE)
    config.mesh.fsdp, config.mesh.tensor = -1, 4
    config.data.shards = 16  # of up to 16 hosts
    return config
