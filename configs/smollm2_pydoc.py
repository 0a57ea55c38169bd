"""A real checkpoint on real English: SmolLM2-135M-Instruct reads Python's own documentation."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    switches = common.parse_arg(arg, seed=0, boxed=False)
    config = common.base()
    config.seed = switches.seed
    config.data.weights = "fetch:smollm2"
    config.data.template = common.template("smollm2_boxed" if switches.boxed else "smollm2_token")
    # bos is <|im_start|> here, with which the template's header begins already.
    config.data.add_bos = False

    train = config.train
    train.mixture = (("pydoc", "pydoc:?split=train", 1.0),)
    train.steps = 100
    train.batch_size = 4
    train.seq_len = 104
    train.micro_branches = 16
    train.warmup_steps = 15
    train.warmup_cuts_per_document = 16
    train.warmup_learning_rate = 2e-4
    train.optimizer.learning_rate = 1e-5
    train.optimizer.warmup_steps = 5

    config.positions.cuts_per_document = 4
    config.positions.min_context = 16
    config.positions.low_nats = 0.8
    config.positions.high_nats = 2.2

    config.rollout.group_size = 8
    config.rollout.think_tokens = 16
    config.rollout.temperature = 0.8
    config.rollout.on_budget = "zero_reward"
    if switches.boxed:
        config.rollout.answer_format = "boxed"
        config.rollout.answer_tokens = 6
    config.reward.groups_per_document = 2
    config.objective.ntp_weight = 0.5

    evaluate = config.evaluate
    evaluate.validation = (("pydoc", "pydoc:?split=validation", 1.0),)
    evaluate.test = (("pydoc", "pydoc:?split=test", 1.0),)
    evaluate.reference = "fetch:smollm2"
    evaluate.documents = 8
    evaluate.gate_documents = 0
    evaluate.positions_per_document = 4
    evaluate.other_positions_per_document = 2
    evaluate.temperature = 0.8
    evaluate.batch_size = 4

    config.logging.checkpoint_every_steps = 10
    config.logging.samples_every_steps = 1
    return config
