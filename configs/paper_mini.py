"""The RPT paper in miniature: its tables, and the controls that could refute them.

python -m rpt.experiment --config=configs/paper_mini.py --workdir=runs/paper_mini        3 seeds
python -m rpt.experiment --config=configs/paper_mini.py:headline --workdir=runs/paper_mini  2 more
python -m rpt.experiment --config=configs/paper_mini.py:quick --workdir=runs/quick       1, small
python -m rpt.experiment --config=configs/paper_mini.py:trials --workdir=runs/trials     tuning

Corpus. Three families of puzzles are trained on (chains of arithmetic, pointers, lists), beside a
part of English; questions need up to 12 steps, and stage 0 shows thoughts up to 4. A fourth family
(running sums) is held out entirely, a fifth (automata) is the verifiable task of the RLVR stage and
unseen before it.

Arms. `base` is stage 0. Reinforcement pre-training of it: `rpt`, as in the paper; `rpt_ntp`, with
next-token prediction on the trunk in the same step; `rpt_random`, at random positions; reward
variants. Controls: `ntp` and `mixed_sft` at the executed FLOPs of `rpt_ntp`, which are 2% above
those of `rpt`; `ntp_wall` at about RPT's wall time. `filler` and `rpt_filler`: the same with
contentless thoughts in stage 0. `unworked` and `rpt_unworked`: no thought was ever shown, which is
where emergence would be seen. `*_rlvr`: GRPO on the answers of automata, with the same settings;
`base_long_rlvr` is given RPT's steps on top.
`rpt_b*` and `ntp_b*`: budgets of their own, each with its own schedule, for the scaling curves.

Trials. RPT, RPT + trunk NTP, NTP and Mixed SFT are each given four: this file's settings, half and
twice the learning rate, and one other change (`_TRIALS`). They run on seed 0 and are judged on
validation by hard tokens of the puzzles, with thought, NTP without. Nothing reads test. The round
at commit ada7989, around 5e-4 for RPT and 4e-4 for the controls, chose what stands here
(docs/results.md).
"""

from ml_collections import ConfigDict

from configs import common
from data import skills, sources

TRAINED = ("chain", "pointer", "lookup")
HELD_OUT, RLVR = "sum", "automaton"
# Steps of RPT: the main arm's, and those of the scaling curve, 1.5 decades.
STEPS, BUDGETS = 80, (5, 13, 33, 80, 200)

_CHAIN = {"largest_name_step": 2, "max_variables": 12, "max_depth": 12, "max_words": 104}
# Plain stories never ask a variable right after its child, worked ones do (configs/mini.py).
_SPARSE = {"skip_weights": "0,0.6,0.3,0.1", "min_questions": 2, "max_questions": 4}
_DENSE = {"skip_weights": "0.85,0.1,0.04,0.01", "min_questions": 3, "empty_thought_fraction": 0.0}
_SHORT_CHAIN = {"min_variables": 3, "max_variables": 4, "min_questions": 1}
_SHORT = {"min_items": 4, "max_items": 6}
# Of the peak of AdamW, and beside it of RPT the share of random cuts: the best of each method's
# trials on validation (docs/results.md).
_RATES = {"rpt": 2.5e-4, "rpt_ntp": 5e-4, "ntp": 8e-4, "mixed_sft": 2e-4}
_RANDOM_CUTS = {"rpt": 0.1, "rpt_ntp": 0.3}
# Only the arms that gated thinking is claimed of are thought through at every position.
_LEAN = {"evaluate.gate_documents": 0, "evaluate.ablations": ()}
_RANDOM = {"positions.mode": "random", "positions.proxy": ""}
_IDLE = 0.06  # of the words of worked documents, and of the English, have an empty thought


def _puzzles(family: str, kind: str, split: str = "train", short: bool = False, **more) -> str:
    """The spec of one family."""
    options: dict = {"kind": kind, "split": split}
    if kind == "worked":
        options["idle_thought_fraction"] = _IDLE
    if family == "chain":
        name = "miniature"
        options |= _CHAIN | (_DENSE if kind == "worked" else _SPARSE)
        options |= _SHORT_CHAIN if short else {}
    else:
        name, options["family"] = "skills", family
        options |= _SHORT if short else {}
    return f"{name}:?" + "&".join(f"{key}={value}" for key, value in (options | more).items())


def _mixed(plain: float, worked: float, english: float, short: bool = False, **more) -> tuple:
    """Plain and worked documents of the trained families in equal parts, and English."""
    each = 1 / len(TRAINED)
    parts = [(f, _puzzles(f, "plain", short=short), plain * each) for f in TRAINED]
    if worked:
        parts += [
            (f"{f}_worked", _puzzles(f, "worked", short=short, **more), worked * each)
            for f in TRAINED
        ]
    if english:
        idle = f"&idle_thoughts={_IDLE}" if worked else ""
        parts.append(("english", f"pydoc:?split=train{idle}", english))
    return tuple(parts)


def get_config(arg: str = "") -> ConfigDict:
    switches = common.parse_arg(arg, headline=False, quick=False, trials=False)
    config = common.base()
    config.model = common.miniature_model(vocab_size=704)
    config.data.tokenizer = "miniature:704"
    config.data.template = common.template("mini")
    _stage0(config)
    _rpt(config)
    _evaluation(config)
    _experiment(config)
    config.logging.checkpoint_every_steps = 250
    if switches.headline:
        _headline(config)
    if switches.quick:
        _quick(config)
    if switches.trials:
        _trials(config)
    return config


def _stage0(config: ConfigDict) -> None:
    """Short documents first, most of them worked, until thinking works where it is easy."""
    stage0 = config.pretrain
    stage0.opening_mixture = _mixed(0.2, 0.8, 0.0, short=True)
    stage0.opening_steps = 300
    stage0.mixture = _mixed(0.36, 0.54, 0.1)
    stage0.batch_size = 12
    stage0.seq_len = 256
    common.miniature_stage0_optimizer(stage0.optimizer)
    stage0.gate.mixture = tuple((f, _puzzles(f, "plain", "validation"), 1.0) for f in TRAINED)
    stage0.gate.labels = ("answer/1", "answer/2", "pointer/1", "pointer/2", "lookup/1", "lookup/2")
    # Of 64 documents a part, as in the trials, chance decided which of two looks was above it.
    stage0.gate.documents = 256
    stage0.gate.threshold = 0.8
    stage0.gate.first_step = 1050
    stage0.gate.every_steps = 200
    stage0.gate.max_steps = 2050


def _rpt(config: ConfigDict) -> None:
    """On plain documents only."""
    train = config.train
    train.mixture = _mixed(0.9, 0.0, 0.1)
    train.steps = STEPS
    train.batch_size = 16
    train.seq_len = 112
    train.micro_branches = 8
    train.optimizer.kind = "adamw"
    train.optimizer.learning_rate = _RATES["rpt"]
    train.optimizer.warmup_steps = 10
    train.optimizer.decay_steps = STEPS // 2
    config.positions.cuts_per_document = 4
    config.positions.proxy = "init"  # frozen: that of the base
    config.positions.low_nats = 1.5
    config.positions.high_nats = 2.6
    config.positions.random_fraction = _RANDOM_CUTS["rpt"]
    config.rollout.group_size = 16
    config.rollout.think_tokens = 28
    config.rollout.chunk_tokens = 7  # a thought has 4.4 tokens on average
    config.reward.normalise = "none"
    config.reward.groups_per_document = 2
    config.objective.ntp_weight = 0.0
    config.objective.ntp_positions = "all"


def _evaluation(config: ConfigDict) -> None:
    """One file of positions for all arms; the parts are the trained and the unseen families."""
    evaluate = config.evaluate
    for split in ("validation", "test"):
        trained = {f: _puzzles(f, "plain", split) for f in TRAINED}
        evaluate[split] = (
            ("puzzles", sources.interleave(**trained), 1.0),
            ("held_out", _puzzles(HELD_OUT, "plain", split), 0.25),
            ("rlvr", _puzzles(RLVR, "plain", split), 0.5),
            ("english", f"pydoc:?split={split}", 0.1),
        )
    evaluate.documents = 450
    evaluate.gate_documents = 120
    evaluate.positions_per_document = 8
    evaluate.other_positions_per_document = 1
    evaluate.batch_size = 32
    evaluate.ablations = ("none", "drop", "shuffle", "swap", "truncate", "filler")
    evaluate.filler = " hm"


def _experiment(config: ConfigDict) -> None:
    plan = config.experiment
    plan.hypothesis = (
        "Where the next token needs several steps of reasoning, a small model that was shown short "
        "thoughts learns from reward alone, on plain text, to think better and further. On hard "
        "test tokens of the puzzles RPT with thought exceeds next-token prediction continued at "
        "equal executed FLOPs, its base with thought, Mixed SFT with thought, and RPT of a base "
        "whose thoughts are contentless; and RPT with next-token prediction on the trunk, thinking "
        "only where its entropy is high, exceeds continued next-token prediction on all tokens."
    )
    plan.seeds = (0, 1, 2)
    plan.claim_part = "puzzles"
    plan.shown_depth = skills.SkillsConfig.worked_depth
    plan.reference = "reference"
    plan.arms = _arms(config)
    plan.claims = _claims()


def _continued(config: ConfigDict, mixture: tuple, rate: float, steps: int = 0) -> ConfigDict:
    """Continued pre-training in batches as stage 0's."""
    section = common.base().pretrain
    section.mixture = mixture
    section.steps = steps
    section.batch_size, section.seq_len = config.pretrain.batch_size, config.pretrain.seq_len
    section.optimizer.learning_rate = rate
    section.optimizer.warmup_steps = 10
    return section


def _arms(config: ConfigDict) -> tuple[dict, ...]:
    plain = config.train.mixture
    reference = _continued(config, plain, 0.0, steps=300)
    reference.optimizer = config.pretrain.optimizer.copy_and_resolve_references()
    reference.optimizer.decay_steps = 100
    # Bases that cannot think have no gate to pass; they are given the longest stage 0 there is.
    stage0 = config.pretrain
    ungated = {
        "pretrain.gate.labels": (),
        "pretrain.steps": stage0.gate.max_steps + stage0.optimizer.decay_steps,
    }
    filler = {
        "pretrain.opening_mixture": _mixed(0.2, 0.8, 0.0, short=True, filler_thoughts=1),
        "pretrain.mixture": _mixed(0.36, 0.54, 0.1, filler_thoughts=1),
        **ungated,
    }
    unworked = {
        "pretrain.opening_mixture": _mixed(1.0, 0.0, 0.0, short=True),
        "pretrain.mixture": _mixed(0.9, 0.0, 0.1),
        **ungated,
    }
    ntp = {"pretrain": _continued(config, plain, _RATES["ntp"])}
    mixed_sft = {"pretrain": _continued(config, config.pretrain.mixture, _RATES["mixed_sft"])}
    rpt_ntp = {
        "objective.ntp_weight": 0.5,
        "train.optimizer.learning_rate": _RATES["rpt_ntp"],
        "positions.random_fraction": _RANDOM_CUTS["rpt_ntp"],
    }
    equal = {"command": "pretrain", "init": "base", "flops_of": "rpt_ntp"}
    return (
        common.arm("base", "base (stage 0)", "pretrain"),
        common.arm(
            *("reference", "reference", "pretrain", {"pretrain": reference}),
            seed_offset=1000,
            evaluated=False,
        ),
        common.arm("rpt", "RPT", "train", init="base", curve="RPT, with thought"),
        common.arm("rpt_ntp", "RPT + trunk NTP", "train", rpt_ntp, init="base"),
        common.arm("ntp", "continued NTP", changes=ntp, curve="NTP, no thought", **equal),
        common.arm("mixed_sft", "Mixed SFT", changes=mixed_sft, **equal),
        common.arm(
            "ntp_wall", "NTP at equal wall time", changes=ntp | _LEAN, **equal, flops_factor=1.7
        ),
        *_variants(),
        common.arm("filler", "base, filler thoughts", "pretrain", filler | _LEAN),
        common.arm("rpt_filler", "RPT, filler thoughts", "train", _LEAN, init="filler"),
        common.arm("unworked", "base, no thought shown", "pretrain", unworked | _LEAN),
        common.arm("rpt_unworked", "RPT, no thought shown", "train", _LEAN, init="unworked"),
        *_rlvr(),
        *_budgets(ntp),
    )


def _variants() -> tuple[dict, ...]:
    """Of positions and rewards; with answers of one token the first-token reward is RPT's own."""
    changes = {
        "rpt_random": ("RPT at random positions", _RANDOM),
        "rpt_dense": ("RPT, dense reward", {"reward.name": "dense"}),
        "rpt_conditional": ("RPT, conditional dense", {"reward.name": "conditional_dense"}),
    }
    return tuple(
        common.arm(name, title, "train", change | _LEAN, init="base")
        for name, (title, change) in changes.items()
    )


def _rlvr() -> tuple[dict, ...]:
    """GRPO on the answers of the family that nothing was trained on, with RPT's settings."""
    task = {
        "train.mixture": (("automata", _puzzles(RLVR, "plain"), 1.0),),
        "train.steps": 40,
        "train.optimizer.decay_steps": 20,
        "positions.labels": (RLVR,),
        **_RANDOM,
    }
    longer = {"train.steps": 40 + STEPS, "train.optimizer.decay_steps": (40 + STEPS) // 2}
    titles = {"base": "base", "ntp": "NTP", "mixed_sft": "Mixed SFT", "rpt": "RPT"}
    titles["rpt_ntp"] = "RPT + trunk NTP"
    return (
        *(
            common.arm(f"{arm}_rlvr", f"{title}, then RLVR", "train", task | _LEAN, init=arm)
            for arm, title in titles.items()
        ),
        common.arm(
            "base_long_rlvr", "base, RLVR for longer", "train", task | longer | _LEAN, init="base"
        ),
    )


def _budgets(ntp: dict) -> tuple[dict, ...]:
    arms = []
    for steps in BUDGETS:
        if steps == STEPS:
            continue  # the main arms are this point
        schedule = {"train.steps": steps, "train.optimizer.decay_steps": steps // 2}
        schedule["train.optimizer.warmup_steps"] = min(10, steps // 3)
        arms.append(
            common.arm(
                *(f"rpt_b{steps}", f"RPT, {steps} steps", "train", schedule | _LEAN),
                init="base",
                curve="RPT, with thought",
            )
        )
        arms.append(
            common.arm(
                *(f"ntp_b{steps}", f"NTP, FLOPs of {steps} steps", "pretrain", ntp | _LEAN),
                init="base",
                flops_of=f"rpt_b{steps}",
                curve="NTP, no thought",
            )
        )
    return tuple(arms)


def _hard(
    a: str, mode_a: str, b: str, mode_b: str, goal: bool = False, part: str = "puzzles", **more
) -> dict:
    """A claim about hard tokens of the puzzles, unless `part` and `more` say otherwise."""
    found = common.claim(a, mode_a, b, mode_b, part, goal=goal, **more)
    return found if part == "puzzles" else found | {"name": f"{found['name']}_{part}"}


def _claims() -> tuple[dict, ...]:
    thought, direct, gated = "thought_argmax", "no_think", "gated"
    return (
        _hard("rpt", thought, "ntp", direct, goal=True),
        _hard("rpt", thought, "base", thought, goal=True),
        _hard("rpt_ntp", gated, "ntp", direct, goal=True, bin="gate"),
        _hard("rpt", thought, "mixed_sft", thought, goal=True),
        _hard("rpt", thought, "rpt_filler", thought, goal=True),
        _hard("rpt", thought, "rpt", direct),
        _hard("rpt", thought, "ntp", thought),
        _hard("rpt", thought, "ntp_wall", direct),
        _hard("rpt_ntp", thought, "rpt", thought),
        _hard("rpt_ntp", thought, "ntp", direct),
        _hard("rpt_ntp", thought, "mixed_sft", thought),
        _hard("rpt", thought, "rpt_random", thought),
        _hard("rpt_filler", thought, "filler", thought),
        _hard("rpt_unworked", thought, "unworked", thought),
        _hard("rpt_unworked", thought, "unworked", direct),
        _hard("rpt_ntp", gated, "rpt_ntp", direct, bin="gate"),
        _hard("rpt_ntp", gated, "ntp", gated, bin="gate"),
        _hard("rpt_ntp", gated, "base", gated, bin="gate"),
        _hard("rpt_ntp", gated, "mixed_sft", gated, bin="gate"),
        _hard("rpt", thought, "base", thought, part="held_out"),
        _hard("rpt", thought, "mixed_sft", thought, part="held_out"),
        _hard("rpt_rlvr", thought, "base_rlvr", thought, part="rlvr", bin="asked"),
        _hard("rpt_rlvr", thought, "mixed_sft_rlvr", thought, part="rlvr", bin="asked"),
        _hard("rpt_rlvr", thought, "base_long_rlvr", thought, part="rlvr", bin="asked"),
    )


# Beside two other learning rates, of each method one more change.
_TRIALS = {
    "rpt": ("positions.random_fraction", 0.3),
    "rpt_ntp": ("objective.ntp_weight", 0.25),
    "ntp": ("pretrain.batch_size", 24),
    "mixed_sft": ("pretrain.batch_size", 24),
}


def _trials(config: ConfigDict) -> None:
    plan = config.experiment
    plan.split, plan.seeds = "validation", (0,)
    arms = [arm for arm in plan.arms if arm["name"] in ("base", "reference", *_TRIALS)]
    claims = []
    for arm in [arm for arm in arms if arm["name"] in _TRIALS]:
        rate, field = _RATES[arm["name"]], f"{arm['command']}.optimizer.learning_rate"
        mode = "no_think" if arm["name"] == "ntp" else "thought_argmax"
        trials = {"half": (field, rate / 2), "twice": (field, rate * 2)}
        for name, change in {**trials, "other": _TRIALS[arm["name"]]}.items():
            title = f"{arm['title']}, {change[0].rpartition('.')[2]} {change[1]:g}"
            changes = (*arm["changes"], change, *_LEAN.items())
            trial = {"name": f"{arm['name']}_{name}", "title": title, "changes": changes}
            arms.append(arm | trial | {"curve": ""})
            claims.append(_hard(trial["name"], mode, arm["name"], mode))
    plan.arms, plan.claims = tuple(arms), tuple(claims)


def _only(plan: ConfigDict, *names: str) -> None:
    """These arms beside stage 0, the reference and the main four, and the claims about them."""
    kept = ("base", "reference", "rpt", "rpt_ntp", "ntp", "mixed_sft", *names)
    plan.arms = tuple(arm for arm in plan.arms if arm["name"] in kept)
    plan.claims = tuple(c for c in plan.claims if c["a"] in kept and c["b"] in kept)


def _headline(config: ConfigDict) -> None:
    """Two more seeds of what the goals are about, in the working directory of the first three."""
    _only(config.experiment, "filler", "rpt_filler")
    config.experiment.seeds = (3, 4)


def _quick(config: ConfigDict) -> None:
    """One seed, a quarter of the evaluation, the main arms: does it run? It supports no claim."""
    _only(config.experiment, "base_rlvr", "rpt_rlvr")
    config.experiment.seeds = (0,)
    config.evaluate.documents = 100
    config.evaluate.gate_documents = 10
    config.train.steps = 40
    config.train.optimizer.decay_steps = 20
    gate = config.pretrain.gate
    gate.documents, gate.first_step, gate.every_steps, gate.max_steps = 64, 650, 100, 850
