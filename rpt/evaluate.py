"""Evaluation of a model, with thoughts and without, on the same positions of held-out text.

    python -m rpt.evaluate --workdir=W [--step=N] [--split=validation|test] [--out=DIR]
    python -m rpt.evaluate --config=configs/X.py --weights=PATH|fetch:smollm2 --out=DIR

Settings are the run's own, or those of --config. Everything goes to OUT/SPLIT/:

    eval_positions.jsonl   made once by the frozen reference model (rpt/evaluation_positions.py),
                           unless --positions names one, which all arms should share
    predictions.jsonl      every prediction (rpt/evaluation_records.py)
    results.json           the tables

Thresholds of gated thinking are chosen on validation; a test evaluation takes them from
OUT/validation/results.json of the same model, or from --gate_threshold. Each reading of the test
split is logged in test_readings.jsonl beside OUT.

results.json, strict JSON (an unknown end of an interval is null; E is {mean, low, high}, 95%):

    schema, split, seconds, eval_flops
    model        path, step, parameters, params_sha256
    reference    path, params_sha256: the model behind bin_entropy
    positions    path, sha256, eligible, thought_at
    settings     thoughts, temperature, think_tokens, answer_format, answer_tokens, on_budget,
                 template_sha256, header_tokens, window_tokens, bins_nats, gate_documents,
                 positions_per_document, other_positions_per_document, ablations, filler, seed
    test_reading how many times these parameters have read the test split; null on validation
    parts        for 'all' and each part of the mixture:
      bins         for 'all' tokens, nested ('>0.5') and disjoint ('0.5..1.0', '<=0.5') bins, ROW
                   or null; the last limit ('>1.5') is the hard bin, whose ROW has `ablations` too:
                   {name: accuracy, target_probability, minus_thought_argmax, minus_no_think},
                   E each, of the answers behind altered thoughts (rpt/evaluation_ablations.py)
      labels       for each label, ROW
      leak_check   of the label 'noise' or null: guess, sigma, sigmas_above_guess, leak_suspected
      every_position   n, no_think_raw E, no_think_header E: on all eligible positions
    gated        null, or for 'all' and each part: n, documents, baseline, no_think E,
                 threshold_chosen_here, reported (POINT, thought_argmax_minus_no_think E,
                 thought_sample_minus_no_think E, enough_thinking, gain_shown), curve [POINT]

    ROW    n, documents; no_think_raw, no_think_header, thought_sample, thought_argmax,
           target_probability (E each); baseline (the better no-think context) and its
           baseline_target_probability E; thought_sample_minus_no_think and
           thought_argmax_minus_no_think (paired, E); pass_at_k_never_a_claim; closed_rate,
           answer_rate, over_budget_rate, mean_thought_tokens, mean_branch_tokens;
           diagnosis {category: share}; flops_per_predicted_token {no_think, thought}
    POINT  threshold (nats of gate_entropy), share of positions that think,
           thought_tokens_per_document_token, thought_argmax and thought_sample accuracy on ALL
           tokens, flops_per_predicted_token

target_probability is that of the target's own token, untempered, averaged over thoughts;
baseline_target_probability the same token's before any thought.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
from absl import flags

from rpt import (
    checkpoint,
    cli,
    evaluation,
    evaluation_ablations,
    evaluation_measure,
    evaluation_positions,
    evaluation_records,
    evaluation_reference,
    evaluation_report,
    hosts,
    loading,
    rollout,
    runs,
)
from rpt import config as config_lib
from rpt.model import transformer

SCHEMA = 1
POSITIONS, RESULTS, PREDICTIONS = "eval_positions.jsonl", "results.json", "predictions.jsonl"
TEST_READINGS = "test_readings.jsonl"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate and where to write.

    Attributes:
      path: the model's run directory or weights, for the record.
      out: output directory; results go to out/split.
      split: 'validation' or 'test'.
      step: the run's checkpoint; None is the newest.
      positions: a positions file to use (or make); None is the one in out/split.
      gate_threshold: nats, for every part; None chooses (validation) or reads (test) it.
    """

    path: str
    out: pathlib.Path
    split: str = "validation"
    step: int | None = None
    positions: pathlib.Path | None = None
    gate_threshold: float | None = None


def evaluate(
    config: config_lib.Config,
    loaded: loading.Loaded,
    request: Request,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluates, writes everything below request.out, returns what is in results.json.

    Raises:
      ValueError: settings that do not fit, a positions file made for something else, a test
        evaluation without a threshold.
      FileNotFoundError: a model, text or template that is not there.
    """
    began = time.monotonic()
    settings = config.evaluate
    mixture = _mixture(settings, request.split)
    filler_id = evaluation_ablations.filler_id(settings, loaded.tokenizer)
    digest = checkpoint.params_sha256(loaded.params)
    thresholds = _thresholds(settings, mixture, request, digest)
    folder = _make_folder(request)

    # ---- positions: the same for every arm -------------------------------------------------------
    path = request.positions or folder / POSITIONS
    given, rows = evaluation_reference.open_positions(config, loaded, mixture, path, say)
    bins = evaluation_positions.choose(given.positions, settings, mixture)
    thought_P = np.logical_or.reduce(list(bins.values()))
    hard_P = bins[evaluation_positions.hardest(bins)]
    plan = evaluation_ablations.plan(settings, filler_id, given.positions, hard_P)
    reading = _log_reading(request, digest, given.sha256) if request.split == "test" else None

    # ---- what the model says ---------------------------------------------------------------------
    subject = evaluation_measure.subject(config, loaded, given.about["window_tokens"])
    where = evaluation_measure.sites(rows, given.positions, subject.token_bytes)
    thinking = dataclasses.replace(
        config.rollout, group_size=settings.thoughts, temperature=settings.temperature
    )
    said, spent = _measure(subject, where, thought_P, thinking, plan, settings.seed, say)

    # ---- tables ----------------------------------------------------------------------------------
    measured = evaluation_records.measured(given.positions, bins, thought_P, said)
    about = _about(request, digest, given, settings, bins)
    predictions = folder / PREDICTIONS
    evaluation_records.write(predictions, about, measured, where, said, subject.token_bytes)
    costs = _costs(subject, rows)
    results = {
        "schema": SCHEMA,
        "split": request.split,
        "model": {**about["model"], "parameters": transformer.num_parameters(loaded.model)},
        "reference": given.about["reference"],
        "positions": _positions_entry(path, given, thought_P),
        "settings": _settings(thinking, settings, subject),
        "test_reading": reading,
        **evaluation.tables(measured, costs, settings.seed, thresholds),
        "eval_flops": spent,
        "seconds": time.monotonic() - began,
    }
    json.dumps(results, allow_nan=False)  # strict, or nothing is written
    runs.write_json(folder / RESULTS, results)
    return results


def _about(
    request: Request,
    digest: str,
    given: evaluation_positions.PositionsFile,
    settings: config_lib.EvaluateConfig,
    bins: Iterable[str],
) -> dict[str, Any]:
    """The first line of predictions.jsonl."""
    return {
        "split": request.split,
        "model": {"path": request.path, "step": request.step, "params_sha256": digest},
        "positions_sha256": given.sha256,
        "thoughts": settings.thoughts,
        "bins": list(bins),
    }


def _make_folder(request: Request) -> pathlib.Path:
    folder = request.out / request.split
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(f"cannot write to {folder}: {error.strerror}") from None
    return folder


def _measure(
    subject: evaluation_measure.Subject,
    where: evaluation_measure.Sites,
    thought_P: np.ndarray,
    thinking: rollout.RolloutConfig,
    plan: evaluation_ablations.Plan,
    seed: int,
    say: Callable[[str], None],
) -> tuple[evaluation_records.Said, int]:
    """Everything that the model is asked, and the FLOPs executed."""
    raw, spent = evaluation_measure.no_think(subject, where, subject.raw_prefix)
    header = raw
    if not np.array_equal(subject.header, subject.raw_prefix):
        header, more = evaluation_measure.no_think(subject, where, subject.header)
        spent += more
    thoughts, more = evaluation_measure.think(subject, where, thought_P, thinking, seed, say)
    spent += more
    ablations, more = evaluation_ablations.measure(
        plan, subject, where, thoughts, thinking.answer_format, say
    )
    return evaluation_records.Said(raw, header, thoughts, ablations), spent + more


def _costs(
    subject: evaluation_measure.Subject, rows: Sequence[evaluation_positions.Row]
) -> evaluation.Costs:
    window = float(np.mean([row.window for row in rows]))
    prefixes = len(subject.raw_prefix), len(subject.header)
    return evaluation.Costs(subject.loaded.model, *prefixes, window)


def _mixture(settings: config_lib.EvaluateConfig, split: str) -> config_lib.Mixture:
    if split not in ("validation", "test"):
        raise ValueError(f"split must be validation or test, not {split!r}")
    mixture = settings.mixture(split)
    if not mixture:
        raise ValueError(f"config.evaluate.{split} names no text: set (name, spec, weight)")
    return mixture


def _positions_entry(
    path: pathlib.Path, given: evaluation_positions.PositionsFile, thought_P: np.ndarray
) -> dict[str, Any]:
    return {
        "path": str(path),
        "sha256": given.sha256,
        "eligible": len(given.positions),
        "thought_at": int(thought_P.sum()),
    }


def _settings(
    thinking: rollout.RolloutConfig,
    settings: config_lib.EvaluateConfig,
    subject: evaluation_measure.Subject,
) -> dict[str, Any]:
    return {
        "thoughts": settings.thoughts,
        "temperature": settings.temperature,
        "think_tokens": thinking.think_tokens,
        "answer_format": thinking.answer_format,
        "answer_tokens": thinking.answer_tokens,
        "on_budget": thinking.on_budget,
        "template_sha256": hashlib.sha256(subject.template.text.encode()).hexdigest(),
        "header_tokens": len(subject.header),
        "window_tokens": subject.window_tokens,
        "bins_nats": list(settings.bins_nats),
        "gate_documents": settings.gate_documents,
        "positions_per_document": settings.positions_per_document,
        "other_positions_per_document": settings.other_positions_per_document,
        "ablations": list(settings.ablations),
        "filler": settings.filler,
        "seed": settings.seed,
    }


def _thresholds(
    settings: config_lib.EvaluateConfig,
    mixture: config_lib.Mixture,
    request: Request,
    digest: str,
) -> dict[str, float] | None:
    """By part; None where they are to be chosen. On test they must have been, on validation."""
    parts = [evaluation.ALL, *(part.name for part in mixture)]
    if request.gate_threshold is not None:
        return dict.fromkeys(parts, request.gate_threshold)
    if request.split == "validation" or not settings.gate_documents:
        return None
    path = request.out / "validation" / RESULTS
    if not path.is_file():
        raise ValueError(
            "thresholds of gated thinking are chosen on validation: evaluate --split=validation "
            f"into {request.out} first, or pass --gate_threshold"
        )
    chosen = json.loads(path.read_text())
    if chosen["model"]["params_sha256"] != digest:
        raise ValueError(f"{path} is of another model; pass --gate_threshold or another --out")
    gated = chosen["gated"] or {}
    if missing := [part for part in parts if part not in gated]:
        raise ValueError(f"{path} has no threshold for {missing[0]!r}; pass --gate_threshold")
    return {part: gated[part]["reported"]["threshold"] for part in parts}


def _log_reading(request: Request, digest: str, positions_sha256: str) -> int:
    """Writes down that the test split was read; returns how often these parameters did."""
    path = request.out.parent / TEST_READINGS
    before = path.read_text().splitlines() if path.is_file() else []
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": request.path,
        "step": request.step,
        "params_sha256": digest,
        "positions_sha256": positions_sha256,
        "out": str(request.out),
        "commit": runs.commit(),
    }
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return 1 + sum(json.loads(line)["params_sha256"] == digest for line in before)


class Opened(NamedTuple):
    """A model and the settings to use it with."""

    loaded: loading.Loaded
    config: config_lib.Config
    path: str


def open_model(workdir: str, weights: str, step: int | None, config: Any) -> Opened:
    """What the flags of a command name: a run with its settings, or weights with a config's.

    Args:
      workdir, weights: exactly one is given.
      step: of a run.
      config: a ConfigDict, or None for the run's own.
    """
    if bool(workdir) == bool(weights):
        raise ValueError("give either --workdir (a run) or --weights (a folder or file)")
    if weights and (config is None or step is not None):
        raise ValueError("--weights needs --config for its settings, and takes no --step")
    if workdir:
        loaded = loading.load_run(pathlib.Path(workdir), step)
    else:
        loaded = loading.load_any(weights)
    if config is None:
        return Opened(loaded, config_lib.from_json(loaded.experiment), workdir)
    return Opened(loaded, config_lib.from_config_dict(config), workdir or weights)


def main(argv: list[str]) -> None:
    del argv
    hosts.refuse("rpt.evaluate")
    if not _OUT.value and not _WORKDIR.value:
        raise ValueError("give --out, where the results go")
    out = _OUT.value or str(pathlib.Path(_WORKDIR.value) / "evaluation")
    opened = open_model(_WORKDIR.value, _WEIGHTS.value, _STEP.value, _CONFIG.value)
    request = Request(
        path=opened.path,
        out=pathlib.Path(out),
        split=_SPLIT.value,
        step=_STEP.value,
        positions=pathlib.Path(_POSITIONS.value) if _POSITIONS.value else None,
        gate_threshold=_GATE_THRESHOLD.value,
    )
    results = evaluate(opened.config, opened.loaded, request)
    console = rich.console.Console()
    console.width = max(console.width, evaluation_report.WIDTH)
    console.print(evaluation_report.result_table(results))
    for line in evaluation_report.lines(results):
        print(line)
    print(f"results in {request.out / request.split / RESULTS}")


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string("workdir", "", "Run directory to evaluate.")
    _WEIGHTS = flags.DEFINE_string(
        "weights", "", "Instead of a run: a Hugging Face folder, a GGUF file, or fetch:NAME."
    )
    _STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; default the newest.")
    _SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "test"], "Which text.")
    _OUT = flags.DEFINE_string("out", "", "Output directory; default WORKDIR/evaluation.")
    _POSITIONS = flags.DEFINE_string(
        "positions", "", "Positions file shared by all arms; made if missing."
    )
    _GATE_THRESHOLD = flags.DEFINE_float(
        "gate_threshold", None, "Nats of gate entropy above which to think; default chosen."
    )
    cli.run(main)
