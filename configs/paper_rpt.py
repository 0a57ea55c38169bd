"""Reinforcement Pre-Training (arXiv 2506.08007v1) at the settings that the paper gives.

    python -m rpt.train --config=configs/paper_rpt.py:documents=omni_math.jsonl --workdir=runs/paper

needs accelerators for a model of 14.8 billion parameters, and three things from you:

    weights     folder of DeepSeek-R1-Distill-Qwen-14B, as Hugging Face has it
    proxy       folder of DeepSeek-R1-Distill-Qwen-1.5B, whose entropies select the positions
    documents   OmniMATH as JSON lines, problem and solution in one field `text`

all switches of this file, such as `:weights=/models/14b,proxy=/models/1.5b`. It was not run by us:
1,000 steps are about 2e20 FLOPs. It is here to be read, and to be overridden.

Behind a setting stands where it comes from: [paper] section 3.3 or table 5; [verl] the default of
verl 0.4, the framework that the paper names; [ours] what the paper leaves open.
"""

from ml_collections import ConfigDict

from configs import common

# [paper] 200 of 4,428 documents are held out; [ours] once for validation and once for test.
_SPLITS = "validation=0.045&test=0.045"
_THINK_TOKENS, _ANSWER_TOKENS = 8128, 64


def of_shape(arg: str, shape: ConfigDict) -> ConfigDict:
    """The same settings for another model: `shape` alone, for rpt.compile, or with the switch
    `weights` a folder of such weights. Without the switch `proxy` positions are chosen by the
    policy as it began, which has the policy's tokenizer in any case."""
    switches = common.parse_arg(arg, seed=0, weights="", proxy="init", documents="omni_math.jsonl")
    config = get_config(",".join(f"{name}={value}" for name, value in switches.items()))
    config.model = None if switches.weights else shape
    return config


def get_config(arg: str = "") -> ConfigDict:
    switches = common.parse_arg(
        arg,
        seed=0,
        weights="DeepSeek-R1-Distill-Qwen-14B",
        proxy="DeepSeek-R1-Distill-Qwen-1.5B",
        documents="omni_math.jsonl",
    )

    def documents(split: str) -> tuple[tuple[str, str, float], ...]:
        spec = f"jsonl:{switches.documents}?field=text&split={split}&{_SPLITS}"
        return (("omni_math", spec, 1.0),)

    config = common.base()
    config.seed = switches.seed
    config.data.weights = switches.weights  # [paper]
    config.data.dtype, config.data.remat = "bfloat16", "full"  # [ours]
    # [paper] v0 for all experiments, in our words. [ours] without the chat's role markers; and
    # what stands between </think> and the answer is forced, where the paper's model writes it
    # itself, so that the target has one place at which its probability is defined.
    config.data.template = common.template("rpt_v0")

    train = config.train
    train.mixture = documents("train")
    train.steps = 1000  # [paper] 1,200 for the last point of its scaling curve
    # [paper] 256 questions a step. [ours] from 64 documents: 4 cuts share one trunk.
    train.batch_size = 64
    config.positions.cuts_per_document = 4
    train.seq_len = 4096  # [paper] the longest prompt
    train.micro_branches = 1  # [ours] what memory allows; the gradient is the same
    train.t_multiple = 256  # [ours] likewise

    optimizer = train.optimizer
    optimizer.kind = "adamw"  # [paper]
    optimizer.learning_rate = 1e-6  # [paper]
    optimizer.b1, optimizer.b2 = 0.9, 0.999  # [paper]
    optimizer.weight_decay = 0.01  # [paper]
    optimizer.warmup_steps = optimizer.decay_steps = 0  # [ours] the schedule is not given
    # [paper] "actor gradient clip 0.2": literally this norm. verl's norm defaults to 1.0 and its
    # ratio clip to 0.2, so the ratio may be meant; see ratio_clip_low below.
    optimizer.grad_norm_clip = 0.2

    # [paper] entropy over the proxy's 16 most probable tokens; low-entropy positions are dropped.
    config.positions.mode = "entropy"
    config.positions.proxy = switches.proxy
    config.positions.low_nats = 1.0  # [ours] the threshold is not given
    config.positions.high_nats = 100.0  # [paper] no upper limit
    config.positions.random_fraction = 0.0
    config.positions.min_context = 8  # [ours]

    rollout = config.rollout
    rollout.group_size = 8  # [paper]
    rollout.temperature = 0.8  # [paper]
    rollout.top_p, rollout.top_k = 1.0, 0  # [verl] nothing is cut off
    # [paper] the last \boxed{} behind </think>, within 8,192 sampled tokens; [ours] their division.
    rollout.answer_format = "boxed"
    rollout.think_tokens = _THINK_TOKENS
    rollout.answer_tokens = _ANSWER_TOKENS
    rollout.on_budget = "zero_reward"  # [paper] no box, no reward
    rollout.chunk_tokens = 1024  # [ours] no influence on what is sampled

    reward = config.reward
    reward.name = "prefix_match"  # [paper] equation 3
    reward.normalise = "std"  # [verl]
    reward.ddof = 1  # [verl] torch.std
    reward.epsilon = 1e-6  # [verl]
    reward.groups_per_document = 0  # [paper] every group with a gradient is trained on
    reward.dynamic_from_step = 500  # [paper]
    # [ours] as many groups as questions; verl's default of 10 rounds at most.
    reward.target_groups = 256
    reward.max_rounds = 10

    objective = config.objective
    # [paper] exactly on-policy: one update per batch, so the ratio is 1 and no clip ever binds.
    # Beside it the other reading of "gradient clip 0.2"; also [verl]'s default.
    objective.ratio_clip_low = objective.ratio_clip_high = 0.2
    objective.kl_weight = 0.0  # [paper]; an entropy bonus, 0 in the paper, we do not have at all
    objective.aggregation = "token_mean"  # [verl]
    objective.count_zero_variance = True  # [verl] all tokens of the batch are in the mean
    objective.rl_weight, objective.ntp_weight = 1.0, 0.0  # [paper]

    evaluate = config.evaluate
    evaluate.validation, evaluate.test = documents("validation"), documents("test")
    evaluate.reference = switches.weights  # [paper] bins by the policy's own base
    evaluate.bins_nats = (0.5, 1.0, 1.5)  # [paper]
    evaluate.documents = 200  # [paper]
    evaluate.temperature = 0.8  # [ours] as in training
    evaluate.thoughts = 4  # [ours]
    evaluate.gate_documents = 0  # [ours] the paper always thinks

    config.logging.checkpoint_every_steps = 50
    config.logging.scaling_checkpoints_per_decade = 8
    return config
