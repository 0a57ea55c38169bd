"""What one process says of another that is gone, late or hangs; a stand-in tells it of others."""

import json
import threading

import jax
import pytest

from rpt import hosts


class Service:
    """As much of the coordination service as hosts use."""

    def __init__(self):
        self.values: dict[str, str] = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

    def wait_at_barrier(self, name, milliseconds):
        raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {name} timed out")


class Others(Service):
    """Process 1 says, look after look, what it is told to; at last that it ends."""

    def __init__(self, said: list[dict]):
        super().__init__()
        self._said = iter([*said, {"why": "told to"}])

    def key_value_dir_get(self, folder):
        self.values["rpt/alive/1"] = json.dumps(next(self._said))
        return super().key_value_dir_get(folder)


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """What happens; ends of the process come as SystemExit."""
    happened = []

    def leave(line):
        happened.append(line)
        raise SystemExit(1)

    monkeypatch.setattr(hosts, "_exit", leave)
    monkeypatch.setattr(hosts, "BEAT_SECONDS", 0.001)
    return happened


def watch(team: hosts.Hosts, service: Service) -> None:
    with pytest.raises(SystemExit):
        hosts._Watchdog(team, service).run()


def test_who_did_not_come_is_named():
    service = Service()
    service.values = {"rpt/gathered/0/2": "null"}
    with pytest.raises(hosts.Missing, match=r"process 1 of 3 did not come to step 0 .* within 5 s"):
        hosts.Hosts(0, 3, service).gather(None, patience_seconds=5)
    # Everyone came: it is something else.
    with pytest.raises(jax.errors.JaxRuntimeError, match="timed out"):
        hosts.Hosts(1, 3, service).barrier()


def test_the_silent_one_is_named(events, monkeypatch):
    monkeypatch.setattr(hosts, "SILENT_SECONDS", 0.02)
    team = hosts.Hosts(0, 2, None)
    watch(team, Others([{"beat": 1}] * 10_000))
    assert "process 1 of 2 is gone (nothing was heard from it for 0 s)" in events[0]


def test_an_end_because_of_another_waits_for_a_save_but_not_for_ever(events, monkeypatch):
    class Save(threading.Thread):
        def is_alive(self):
            return True

        def join(self, timeout=None):
            events.append(f"waited {timeout:.0f} s")

    team = hosts.Hosts(0, 2, None)
    team.hold(Save())
    watch(team, Others([]))
    assert events[0] == f"waited {hosts.SAVE_SECONDS:.0f} s"
    assert "process 1 of 2 is gone (told to)" in events[1]

    monkeypatch.setattr(hosts, "SAVE_SECONDS", 0.01)
    never = threading.Event()
    endless = threading.Thread(target=never.wait, daemon=True)
    endless.start()
    team = hosts.Hosts(0, 2, None)
    team.hold(endless)
    watch(team, Others([]))
    assert len(events) == 3
    never.set()


@pytest.mark.parametrize(
    ("own", "other", "named"), [(4, 3, "process 1 hangs"), (4, 4, "one (each has printed where")]
)
def test_where_nothing_moves_all_end(events, monkeypatch, own, other, named):
    monkeypatch.setattr(hosts, "PATIENCE_SECONDS", 0.02)
    team = hosts.Hosts(0, 2, None)
    team.exchanges = own
    watch(team, Others([{"beat": i, "exchanges": other} for i in range(10_000)]))
    assert "none of the 2 processes has come to another exchange" in events[0]
    assert named in events[0]


@pytest.mark.parametrize("exchanges", [[0] * 100, range(100)], ids=["opening", "moving"])
def test_who_moves_or_opens_data_is_left_alone(events, monkeypatch, exchanges):
    monkeypatch.setattr(hosts, "PATIENCE_SECONDS", 0.02)
    team = hosts.Hosts(0, 2, None)
    team.exchanges = 7
    watch(team, Others([{"beat": i, "exchanges": n} for i, n in enumerate(exchanges)]))
    assert "told to" in events[0]


def test_the_reason_is_the_last_that_is_said(events, monkeypatch):
    """Also when the watchdog is just about to say that this process is alive."""
    beating, reason = threading.Event(), threading.Event()

    class Slow(Service):
        def key_value_set(self, key, value, allow_overwrite=False):
            if "why" in json.loads(value):
                reason.set()
            else:
                beating.set()
                reason.wait(0.3)  # for one that would come too early
            super().key_value_set(key, value, allow_overwrite)

    service = Slow()
    watchdog = hosts._Watchdog(hosts.Hosts(1, 2, None), service)
    watchdog.start()
    assert beating.wait(60)
    with pytest.raises(SystemExit):
        watchdog.end_process(ValueError("no such shard"))
    watchdog.join()
    assert json.loads(service.values["rpt/alive/1"]) == {"why": "no such shard"}
    assert events == ["no such shard"]
