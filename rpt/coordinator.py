"""The coordination service of several processes, in a process of its own.

    python -m rpt.coordinator PORT COUNT

Process 0 starts it (rpt/hosts.py). jax would run the service within process 0, and abort all
others from C++ the moment that it is gone, with a stack trace and without a name. Here it outlives
process 0 for as long as the others need to notice and to say who is missing.
"""

import importlib
import sys
import time

# Longer than it takes to notice that a process is gone (rpt/hosts.py).
LINGER_SECONDS = 40.0
# Beyond the patience of rpt/hosts.py, which is to be the first to speak.
HEARTBEAT_TIMEOUT_SECONDS = 300


def main(port: int, count: int) -> None:
    """Serves until standard input ends, which is when process 0 does."""
    # What jax.distributed.initialize calls in process 0; jax itself is not needed for it.
    library = importlib.import_module("jaxlib._jax")
    service = library.get_distributed_runtime_service(
        f"[::]:{port}", count, heartbeat_timeout=HEARTBEAT_TIMEOUT_SECONDS, shutdown_timeout=1
    )
    sys.stdin.read()
    time.sleep(LINGER_SECONDS)
    del service


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
