"""What every benchmark prints: the machine, a table, and one line of JSON."""

import datetime
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import rich.console
import rich.table

from rpt import runs


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": runs.commit(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor() if device.platform == "cpu" else None,
        "jax": jax.__version__,
    }


def peak_bytes() -> int:
    """The most memory this process has held: of the device if it says, else of the host."""
    stats = jax.devices()[0].memory_stats() or {}
    return (
        stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    )


def show(workload: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints the workload, one table of all rows, and the same as one line of JSON."""
    table = rich.table.Table(title=workload)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*[_cell(row.get(name)) for name in rows[0]])
    rich.console.Console(width=200 if not os.isatty(1) else None).print(table)
    print(json.dumps({"workload": workload, "machine": machine(), "rows": list(rows)}))


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """The least time of `repeats` runs, after one that compiles; waits for the results."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return min(times)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _processor() -> str | None:
    try:
        with open("/proc/cpuinfo") as file:
            return next((l.split(":")[1].strip() for l in file if l.startswith("model name")), None)
    except OSError:
        return None
