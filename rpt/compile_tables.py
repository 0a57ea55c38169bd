"""Reports of compiled steps as Markdown tables and as JSON."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from rpt import aot, compile_search, hlo_costs
from rpt.model import config as model_config

GB = 1e9


def of_report(report: aot.Report, model: model_config.ModelConfig) -> str:
    """Memory, work and time per program; what travels; the bounds; whether it fits."""
    parts = [_title(report)]
    if report.programs:
        parts += [_memory(report), _time(report), _collectives(report), _checks(report, model)]
    return "\n\n".join([*parts, verdict(report)])


def as_json(report: aot.Report) -> dict[str, Any]:
    return {
        "topology": report.topology,
        "mesh": report.mesh,
        "fits": report.fits,
        "refused": report.refused,
        "predicted_step_seconds": report.step_seconds,
        "not_counted": list(report.not_counted),
        "fsdp_bytes": {
            name: {"counted": counted, "needed": needed}
            for name, (counted, needed) in report.fsdp_exchanges.items()
        },
        "programs": [program_as_json(each) for each in report.programs],
    }


def program_as_json(program: aot.Program) -> dict[str, Any]:
    found = dataclasses.asdict(program)
    found["costs"] = costs_as_json(program.costs)
    return found


def costs_as_json(costs: hlo_costs.Costs) -> dict[str, Any]:
    moved = {f"{kind} {axes}": round(n) for (kind, axes), n in costs.by_kind_and_axis().items()}
    return {"flops": costs.flops, "hbm_bytes": costs.hbm_bytes, "received_bytes": moved}


def of_search(trials: Sequence[compile_search.Trial]) -> str:
    rows = []
    for each in trials:
        candidate, outcome = each.candidate, each.outcome
        mesh = candidate.mesh
        rows.append(
            [
                f"{mesh.replica} x {mesh.fsdp} x {mesh.tensor}",
                candidate.remat,
                str(candidate.micro_branches),
                str(candidate.chunk_tokens),
                str(candidate.batch_size),
                _number(outcome.rate) if outcome.fits else _cell(outcome.reason),
            ]
        )
    head = ["mesh", "remat", "micro-branches", "first cache", "batch", "predicted tokens/s"]
    return _table(head, rows)


def of_proposal(best: compile_search.Trial) -> str:
    candidate = best.candidate
    mesh = candidate.mesh
    return (
        f"proposed: --config.mesh.replica={mesh.replica} --config.mesh.fsdp={mesh.fsdp} "
        f"--config.mesh.tensor={mesh.tensor} --config.train.batch_size={candidate.batch_size} "
        f"--config.train.micro_branches={candidate.micro_branches} "
        f"--config.rollout.chunk_tokens={candidate.chunk_tokens}, remat {candidate.remat!r}"
    )


def _title(report: aot.Report) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in report.mesh.items())
    return f"{report.topology}, {mesh}; per chip"


def _memory(report: aot.Report) -> str:
    head = ["program", "arguments GB", "results GB", "temporaries GB", "held GB", "peak GB", "HBM"]
    rows = [
        [
            each.name,
            *[
                _number(n / GB)
                for n in (
                    each.arguments,
                    each.results,
                    each.temporaries,
                    each.held,
                    each.peak,
                )
            ],
            f"{each.peak / report.chip.hbm_bytes:.0%}",
        ]
        for each in report.programs
    ]
    return _table(head, rows)


def _time(report: aot.Report) -> str:
    head = [
        *("program", "runs", "TFLOP", "HBM GB", "ICI GB", "compute ms", "HBM ms", "ICI ms"),
        *("bound by", "predicted s a step"),
    ]
    rows = []
    for each in report.programs:
        received = sum(c.total_bytes for c in each.costs.collectives)
        rows.append(
            [
                each.name,
                str(each.runs),
                _number(each.costs.flops / 1e12),
                _number(each.costs.hbm_bytes / GB),
                _number(received / GB),
                *[_number(1e3 * each.seconds[name]) for name in ("compute", "HBM", "ICI")],
                each.bound,
                _number(each.step_seconds),
            ]
        )
    return _table(head, rows)


def _collectives(report: aot.Report) -> str:
    head = ["program", "received GB of one run, by kind and axis"]
    rows = [
        [
            each.name,
            ", ".join(
                f"{kind} {axes or 'nowhere'} {_number(n / GB)}"
                for (kind, axes), n in each.costs.by_kind_and_axis().items()
                if n
            )
            or "none",
        ]
        for each in report.programs
    ]
    return _table(head, rows)


def _checks(report: aot.Report, model: model_config.ModelConfig) -> str:
    lines = []
    moved = [
        each.name for each in report.programs if aot.logits_moved(each.costs, model, report.mesh)
    ]
    lines.append(f"programs that move logits between chips: {', '.join(moved) or 'none'}")
    for each in report.programs:
        if each.name == "decode":
            weights = aot.weights_moved(each.costs, model, report.mesh)
            kinds = ", ".join(sorted({collective.kind for collective in weights}))
            lines.append(f"collectives of decode that move weights: {kinds or 'none'}")
    undeclared = sorted({name for each in report.programs for name in each.costs.undeclared})
    if undeclared:
        lines.append(f"kernels that declare no FLOPs, which are missing: {', '.join(undeclared)}")
    loops = [
        f"{name} ({each.name})" for each in report.programs for name in each.costs.unknown_loops
    ]
    if loops:
        lines.append(
            "loops that run as often as the data says, counted once, so that more is executed than "
            f"stands here: {', '.join(loops)}"
        )
    return "\n".join([*lines, *_fsdp(report)])


def _fsdp(report: aot.Report) -> list[str]:
    exchanges = report.fsdp_exchanges
    if not exchanges.keys() >= set(aot.UPDATE) or not any(need for _, need in exchanges.values()):
        return []
    counted, needed = (sum(column) for column in zip(*exchanges.values(), strict=True))
    return [
        f"an update receives along replica and fsdp {_number(counted / GB)} GB; "
        f"FSDP needs {_number(needed / GB)} GB; ratio {counted / needed:.2f}",
        "of it: "
        + "; ".join(
            f"{name} {_number(got / GB)} GB, needed {_number(need / GB)}"
            + (f", ratio {got / need:.2f}" if need else "")
            for name, (got, need) in exchanges.items()
        ),
    ]


def verdict(report: aot.Report) -> str:
    """Whether it fits, and what says so."""
    if report.refused:
        return f"does not fit: {report.refused}"
    largest = report.largest
    share = largest.peak / report.chip.hbm_bytes
    size = f"{_number(largest.peak / GB)} GB of {_number(report.chip.hbm_bytes / GB)} ({share:.0%})"
    if not report.fits:
        return f"does not fit: {largest.name} needs {size} of a chip's HBM"
    return (
        f"fits: {largest.name} needs most, {size}\n"
        f"predicted: {_number(report.step_seconds)} s a step in which all thoughts use their "
        "budget and all groups are trained, "
        f"{_number(report.tokens_per_second)} thought tokens/s, at full rates\n"
        f"not counted: {', '.join(report.not_counted)}"
    )


def _cell(text: str) -> str:
    return textwrap.shorten(text, 160, placeholder=" ...").replace("|", "/")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(x: float) -> str:
    if x == 0:
        return "0"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
