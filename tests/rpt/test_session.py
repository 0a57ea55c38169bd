"""What surrounds a loop: how a failed save and a failed step end a run."""

import json
import pathlib
import threading

import pytest

from rpt import checkpoint, cli, manifests, pretrain, update
from tests.rpt import test_pretrain

SETTINGS = test_pretrain.experiment(**{"logging.checkpoint_every_steps": 3})


def steps(run: pathlib.Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def full(folder: pathlib.Path) -> None:
    raise OSError(28, "No space left on device")


class Patient(cli.StopSignal):
    """Between two steps the save of the first has ended, whichever way."""

    def __init__(self):
        pass

    @property
    def received(self) -> bool:
        for thread in threading.enumerate():
            if thread.name.startswith("save of step"):
                thread.join()
        return False


def test_a_failed_save_ends_the_run_before_its_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "write", full)
    with pytest.raises(checkpoint.SaveFailed, match=r"step 3 could not be saved .* No space"):
        pretrain.pretrain(SETTINGS, tmp_path / "run", stop=Patient())
    assert steps(tmp_path / "run") == [1, 2, 3]


def test_a_failed_step_lets_the_save_under_way_finish(tmp_path, monkeypatch, capsys):
    """Behind the error the interpreter ends, and with it the save if it still ran."""
    gradients, calls, saves = update.ntp_gradients, [], []
    write = manifests.write

    def bad(*given):
        calls.append(given)
        if len(calls) % 4 == 0:
            raise ValueError("no more documents")
        return gradients(*given)

    def late(folder):
        saves.append(folder.name)
        threading.Event().wait(0.5)
        if len(saves) > 1:
            full(folder)
        write(folder)

    monkeypatch.setattr(update, "ntp_gradients", bad)
    monkeypatch.setattr(manifests, "write", late)
    folder = tmp_path / "run" / "checkpoints"
    with pytest.raises(ValueError, match="no more documents"):
        pretrain.pretrain(SETTINGS, tmp_path / "run")
    assert [path.name for path in folder.iterdir()] == ["3"]
    assert capsys.readouterr().err == ""
    # If that save fails too, the error of the step is the one that is raised.
    with pytest.raises(ValueError, match="no more documents"):
        pretrain.pretrain(SETTINGS, tmp_path / "run")
    assert [path.name for path in folder.iterdir()] == ["3"]
    assert "warning: the checkpoint of step 6 could not be saved" in capsys.readouterr().err
