"""Whether a step fits, what bounds it and about how long it takes, before any chip is paid for.

    python -m rpt.compile --config=configs/llama3_1_8b.py --topology=v5p:2x2x2
    python -m rpt.compile --config=configs/smollm2_pydoc.py --model=smollm2_135m \\
        --config.data.dtype=bfloat16 --config.train.batch_size=8 --topology=v5e:2x4
    python -m rpt.compile --config=configs/llama3_1_8b.py --topology=v6e:4x4 --search

compiles all programs of one training step by the real TPU compiler, without a TPU (it needs libtpu:
pip install -e '.[tpu]'), and prints per program: HBM of a chip, FLOPs, bytes of HBM and between
chips, and what bounds it. Bodies of loops count as often as they run. `predicted` stands before
what was computed from published rates and is no measurement. Where the step does not fit it says so
and exits with status 1.

--search tries meshes, remat policies, micro-batches, first cache sizes and batches one after the
other, keeps what fits and predicts most tokens a second, and compiles at most --search_steps steps.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
from absl import flags

from kernels import models
from rpt import aot, cli, compile_search, compile_tables, topologies
from rpt import config as config_lib
from rpt.model import config as model_config

_TOPOLOGY = flags.DEFINE_string("topology", "", "The slice, such as v5e:2x4 or v5p:4x4x4.")
_MODEL = flags.DEFINE_enum(
    "model", None, list(models.MODELS), "The shape, for a config that takes weights."
)
_TAIL = flags.DEFINE_integer("tail_tokens", 8, "Tokens of the template before a thought.")
_CLOSE = flags.DEFINE_integer("close_tokens", 8, "Tokens of the template behind a thought.")
_SEARCH = flags.DEFINE_bool("search", False, "Propose settings that fit and are fastest.")
_STEPS = flags.DEFINE_integer("search_steps", 12, "Steps that a search compiles at most.")
_HLO = flags.DEFINE_string("hlo", "", "A folder for the optimised HLO of every program.")
_OUT = flags.DEFINE_string("out", "", "A file for the same as JSON.")


def main(argv: list[str]) -> None:
    del argv
    if _CONFIG.value is None or not _TOPOLOGY.value:
        raise ValueError("rpt.compile needs --config, such as configs/mini.py, and --topology")
    config = config_lib.from_config_dict(_CONFIG.value)
    shape = None if _MODEL.value is None else model_config.named(_MODEL.value)
    model = aot.model_of(config, shape)
    report = _search(config, model) if _SEARCH.value else _compile(config, model)
    print(compile_tables.of_report(report, model), flush=True)
    if _OUT.value:
        pathlib.Path(_OUT.value).write_text(json.dumps(compile_tables.as_json(report), indent=1))
    if not report.fits:
        sys.exit(1)


def _compile(config: config_lib.Config, model: model_config.ModelConfig) -> aot.Report:
    mesh = topologies.mesh(_TOPOLOGY.value, config.mesh)
    return aot.compile_report(
        config,
        model,
        _TOPOLOGY.value,
        mesh,
        tail=_TAIL.value,
        close=_CLOSE.value,
        progress=_progress,
    )


def _progress(program: aot.Program, text: str) -> None:
    print(
        f"compiled {program.name} in {program.compile_seconds:.0f} s", file=sys.stderr, flush=True
    )
    if _HLO.value:
        folder = pathlib.Path(_HLO.value)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{program.name}.hlo").write_text(text)


def _search(config: config_lib.Config, model: model_config.ModelConfig) -> aot.Report:
    reports: dict[compile_search.Candidate, Any] = {}

    def evaluate(candidate: compile_search.Candidate) -> compile_search.Outcome:
        train = dataclasses.replace(
            config.train,
            batch_size=candidate.batch_size,
            micro_branches=candidate.micro_branches,
        )
        rollout = dataclasses.replace(config.rollout, chunk_tokens=candidate.chunk_tokens)
        tried = dataclasses.replace(config, train=train, rollout=rollout, mesh=candidate.mesh)
        try:
            report = _compile(tried, dataclasses.replace(model, remat=candidate.remat))
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            return compile_search.Outcome(False, 0.0, f"not compiled: {error}")
        reports[candidate] = report
        if not report.fits:
            return compile_search.Outcome(False, 0.0, compile_tables.verdict(report))
        return compile_search.Outcome(True, report.tokens_per_second)

    devices = len(topologies.devices(_TOPOLOGY.value))
    start = compile_search.start(config, model, devices)
    trials = compile_search.search(
        start, compile_search.Limits(devices, model), evaluate, _STEPS.value
    )
    print(compile_tables.of_search(trials), flush=True)
    best = compile_search.best(trials)
    if best is None:
        raise ValueError(compile_search.why_none(trials, _TOPOLOGY.value))
    print(compile_tables.of_proposal(best), flush=True)
    return reports[best.candidate]


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    cli.run(main)
