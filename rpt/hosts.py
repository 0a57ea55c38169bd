"""Several processes, usually one per host, that run one program together.

Every process runs the same loop over its own rows of the batch, and all issue the same programs
over one mesh (multi-controller JAX). What they must agree on, they gather: a few numbers of JSON
through the coordination service of jax.distributed, without a device. A thread of each process says
every second that it is alive, and how many exchanges it has come to, and reads what the others say.
Where one has ended, or is silent for 30 s, the others end with one line that names it, also while
they wait in a collective. Where all live and none comes to another exchange all end after an hour.

    --hosts=auto                    on Cloud TPU: address, number and identity are detected
    --hosts=ADDRESS:PORT,COUNT,ID   elsewhere; ADDRESS is where process 0 runs
"""

import contextlib
import faulthandler
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
from jax._src import distributed

from data import commands
from rpt import cli, coordinator

# One host may compile for half an hour while another waits for it.
PATIENCE_SECONDS = 3600.0
BEAT_SECONDS = 1.0
SILENT_SECONDS = 30.0
# For a save that is under way when another process is gone.
SAVE_SECONDS = 20.0
# What counts of the time between two looks at most: a machine that slept as a whole missed nothing.
_LONGEST_LOOK_SECONDS = 3.0
_START_SECONDS = 300
_ALIVE, _GATHERED = "rpt/alive", "rpt/gathered"


class Missing(OSError):
    """A process did not come to where the others wait for it."""


class Hosts:
    """The processes of a run; without a client there is one.

    Attributes:
      index, count: which process of how many.
      exchanges: how many it has come to.
    """

    def __init__(self, index: int = 0, count: int = 1, client: Any = None):
        self.index, self.count, self.exchanges = index, count, 0
        self._client = client
        self._held: list[threading.Thread] = []

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes what there is once."""
        return self.index == 0

    def gather(self, value: Any, patience_seconds: float = PATIENCE_SECONDS) -> list[Any]:
        """The values (JSON) of all processes in their order; all must call it, in the same order.

        Raises:
          Missing: another process did not, with its number.
        """
        if self.count == 1:
            return [value]
        number = self.exchanges
        self.exchanges += 1
        folder = f"{_GATHERED}/{number}"
        self._client.key_value_set(f"{folder}/{self.index}", json.dumps(value))
        try:
            self._client.wait_at_barrier(folder, int(1000 * patience_seconds))
        except jax.errors.JaxRuntimeError as error:
            came = {int(key.rpartition("/")[2]) for key, _ in self._read(folder)}
            absent = [str(i) for i in range(self.count) if i not in came]
            if not absent:
                raise
            raise Missing(
                f"process {', '.join(absent)} of {self.count} did not come to step {number} of the "
                f"exchange within {patience_seconds:.0f} s"
            ) from error
        found = dict(self._read(folder))
        if number:
            # All have read the one before, or they would not be here.
            self._client.key_value_delete(f"{_GATHERED}/{number - 1}/{self.index}")
        return [json.loads(found[f"{folder}/{i}"]) for i in range(self.count)]

    def _read(self, folder: str) -> Sequence[tuple[str, str]]:
        return self._client.key_value_dir_get(f"{folder}/")

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of them."""
        return any(self.gather(bool(flag)))

    def total(self, numbers: Mapping[str, float]) -> dict[str, Any]:
        """The sums over all processes, name by name."""
        gathered = self.gather(dict(numbers))
        return {name: sum(each[name] for each in gathered) for name in numbers}

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The maxima over all processes, place by place; shorter lists count as 0 behind."""
        gathered = self.gather([int(number) for number in numbers])
        return [max(column) for column in itertools.zip_longest(*gathered, fillvalue=0)]

    def from_first(self, value: Any) -> Any:
        """What process 0 gave (JSON); the others' values do not matter."""
        return self.gather(value if self.is_first else None)[0]

    def barrier(self) -> None:
        """Until all are here."""
        self.gather(None)

    def hold(self, thread: threading.Thread) -> None:
        """Of work that is not to be cut off by the end of another process; see `release`."""
        self._held = [held for held in self._held if held.is_alive()] + [thread]

    def release(self) -> None:
        """Waits for the work of `hold`, which may itself wait for who is gone: SAVE_SECONDS."""
        until = time.monotonic() + SAVE_SECONDS
        for thread in self._held:
            thread.join(max(until - time.monotonic(), 0.0))


ALONE = Hosts()


def several(where: str) -> bool:
    """Whether `--hosts` or RPT_HOSTS asks for more than one process, as far as it says."""
    return bool(where) and (where == "auto" or _parse(where)[1] > 1)


def refuse(command: str) -> None:
    """For commands of one process.

    Raises:
      ValueError: they are to run in several.
    """
    where = os.environ.get("RPT_HOSTS", "")
    if several(where) and (where != "auto" or jax.process_count() > 1):
        raise ValueError(
            f"{command} runs in one process, and this is one of several; run it on one host, "
            "without RPT_HOSTS"
        )


@contextlib.contextmanager
def joined(where: str) -> Iterator[Hosts]:
    """The processes of `--hosts`, from their meeting to their end; '' is this one alone.

    An error here is told to the others, and ends this process; an error of a collective waits first
    for the news of who is gone.
    """
    if not where:
        yield ALONE
        return
    keeper = _start(where)
    hosts = Hosts(jax.process_index(), jax.process_count(), distributed.global_state.client)
    watchdog = _Watchdog(hosts, distributed.global_state.client)
    watchdog.start()
    stopped = None
    try:
        yield hosts
        hosts.barrier()
    except cli.Stopped as error:  # by all
        stopped = error
    except BaseException as error:
        watchdog.end_process(error)
    watchdog.rest()
    jax.distributed.shutdown()
    if keeper is not None:
        keeper.kill()
        keeper.wait()
    if stopped is not None and hosts.is_first:
        raise stopped


def _start(where: str) -> subprocess.Popen[bytes] | None:
    """Joins the others; returns the coordination service if this process has started it."""
    # jax's own handler would take SIGTERM from the loop, which saves and ends.
    jax.config.update("jax_enable_preemption_service", False)
    if where == "auto":
        jax.distributed.initialize(
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=coordinator.HEARTBEAT_TIMEOUT_SECONDS,
        )
        return None
    # What is there for several processes on CPU; of no effect elsewhere.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address, count, index = _parse(where)
    port = int(address.rpartition(":")[2])
    keeper = _keep(port, count) if index == 0 else None
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            cluster_detection_method="deactivate",
            # Process 0 cannot but start a service of its own, which nobody asks.
            coordinator_bind_address="localhost:0",
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=coordinator.HEARTBEAT_TIMEOUT_SECONDS,
            shutdown_timeout_seconds=30,
        )
    except jax.errors.JaxRuntimeError as error:
        raise Missing(
            f"the {count} processes did not meet at {address} within {_START_SECONDS} s "
            f"({commands.one_line(error)})"
        ) from error
    return keeper


def _parse(where: str) -> tuple[str, int, int]:
    """Address with port, count, index.

    Raises:
      ValueError: it does not look like that.
    """
    found = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", where)
    if found is None or not 0 <= int(found[3]) < int(found[2]):
        raise ValueError(
            f"--hosts={where} is neither 'auto' nor ADDRESS:PORT,COUNT,ID with ID below COUNT"
        )
    return found[1], int(found[2]), int(found[3])


def _keep(port: int, count: int) -> subprocess.Popen[bytes]:
    """Starts the coordination service, once that of a run that has just died is gone."""
    patience = time.monotonic() + coordinator.LINGER_SECONDS + 20
    while _is_taken(port):
        if time.monotonic() > patience:
            raise ValueError(f"port {port} is taken by another program; choose another in --hosts")
        time.sleep(0.2)
    return subprocess.Popen(
        [sys.executable, "-m", "rpt.coordinator", str(port), str(count)],
        stdin=subprocess.PIPE,
        # It outlives this process, and whoever reads our output is not to wait for it.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the run
    )


def _is_taken(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return False
    return True


class _Watchdog(threading.Thread):
    """Says that this process is alive, and ends it when another is not, or when nothing moves."""

    def __init__(self, hosts: Hosts, client: Any):
        super().__init__(daemon=True)
        self._hosts, self._client = hosts, client
        self._ended = threading.Event()

    def run(self) -> None:
        silent = dict.fromkeys(range(self._hosts.count), 0.0)
        last: dict[int, str] = {}
        reached: dict[int, int] = {}
        unanswered = still = 0.0
        looked = time.monotonic()
        for beat in itertools.count():
            if self._ended.wait(BEAT_SECONDS):
                return
            before, looked = looked, time.monotonic()
            passed = min(looked - before, _LONGEST_LOOK_SECONDS)
            try:
                self._say({"beat": beat, "exchanges": self._hosts.exchanges})
                found = dict(self._client.key_value_dir_get(f"{_ALIVE}/"))
                unanswered = 0.0
            except jax.errors.JaxRuntimeError as error:
                unanswered += passed
                if unanswered >= SILENT_SECONDS:
                    _exit(f"the host of process 0 cannot be reached ({commands.one_line(error)})")
                continue
            reached_before, reached = reached, {}
            for other in silent:
                said = found.get(f"{_ALIVE}/{other}", "{}")
                content = json.loads(said)
                if "why" in content:
                    self._leave(other, content["why"])
                silent[other] = 0.0 if said != last.get(other) else silent[other] + passed
                last[other] = said
                reached[other] = content.get("exchanges", 0)
                if silent[other] >= SILENT_SECONDS:
                    self._leave(other, f"nothing was heard from it for {SILENT_SECONDS:.0f} s")
            # Before the first of them data is opened, for as long as it takes.
            moves = reached != reached_before or 0 in reached.values()
            still = 0.0 if moves else still + passed
            if still >= PATIENCE_SECONDS:
                self._give_up(reached)

    def _say(self, what: dict[str, Any]) -> None:
        key = f"{_ALIVE}/{self._hosts.index}"
        self._client.key_value_set(key, json.dumps(what), allow_overwrite=True)

    def _leave(self, other: int, why: str) -> None:
        # After the end has been agreed on nobody is missed.
        if other != self._hosts.index and not self._ended.is_set():
            self._hosts.release()
            _exit(
                f"process {other} of {self._hosts.count} is gone ({why}); this one "
                f"({self._hosts.index}) ends too, and the same command on all goes on from the "
                "last checkpoint"
            )

    def _give_up(self, reached: Mapping[int, int]) -> NoReturn:
        """All live, and one hangs: who is behind, if that can be seen, and where this one is."""
        most = max(reached.values())
        behind = [str(i) for i, exchanges in reached.items() if exchanges < most]
        who = f"process {', '.join(behind)}" if behind else "one (each has printed where it is)"
        faulthandler.dump_traceback()
        _exit(
            f"none of the {self._hosts.count} processes has come to another exchange for "
            f"{PATIENCE_SECONDS:.0f} s: {who} hangs, and the others wait for it; the same command "
            "on all goes on from the last checkpoint"
        )

    def end_process(self, error: BaseException) -> NoReturn:
        """Tells the others, unless it is they who are the reason."""
        if isinstance(error.__cause__ or error, jax.errors.JaxRuntimeError):
            # A collective fails at once when another process dies; who it was is known soon.
            time.sleep(SILENT_SECONDS + 5)
        line = commands.one_line(error) or type(error).__name__
        self.rest()  # or it might say once more, and last, that this process is alive
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._say({"why": line})
            # The service of process 0 may end with it, so the others must have read by then.
            time.sleep(3 * BEAT_SECONDS)
        if not isinstance(error, (*cli.USER_ERRORS, KeyboardInterrupt)):
            traceback.print_exception(error)
        _exit(line)

    def rest(self) -> None:
        """It says and notices nothing more."""
        self._ended.set()
        self.join()


def _exit(line: str) -> NoReturn:
    """At once: no other thread is waited for, as it may sit in a collective for ever."""
    print(f"error: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
