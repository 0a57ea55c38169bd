"""Checkpoints of everything a run is: parameters, optimiser, and the rest as JSON.

Two stores in a run directory: `checkpoints/`, the last few, complete; `scaling/`, parameters only,
kept at log-spaced training FLOPs for scaling curves. In both a folder named by its step is one
checkpoint:

    STEP.saving/     on its way: Orbax writes it in the background
    STEP/            complete: a manifest of all its files was written last, then it was renamed
    STEP.damaged/    a start has found it damaged and gone on from the one before
    STEP.deleting/   on its way out

In a bucket, where a rename is a copy, it is written as STEP/, and complete once it has a manifest.
A reader verifies the manifest and takes the newest good one.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rpt import files, hosts, manifests, sharding


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes. `host` is JSON: data iterator, ledger, curriculum."""

    step: int
    params: Any
    opt_state: Any
    host: dict[str, Any]


class SaveFailed(OSError):
    """A checkpoint could not be written; those before it are as they were."""


class Checkpoints:
    """The checkpoints of one run directory.

    Saving is asynchronous. An error of a save is raised, as `SaveFailed`, by the next call of any
    method; the loop calls `check` in every step.

    Each of several hosts writes and reads its part of the arrays, in a folder that all share, and
    calls every method; the first alone names, lists and removes folders, and writes the rest.
    """

    def __init__(self, workdir: pathlib.Path, keep_last: int, team: hosts.Hosts = hosts.ALONE):
        self._team = team
        self._complete = _Store(workdir / "checkpoints", keep_last, team)
        self._scaling = _Store(workdir / "scaling", None, team)

    def save(self, state: TrainState) -> None:
        """Begins a save; a step that is already there is left alone."""
        arrays = {"params": state.params, "opt_state": state.opt_state}
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(state.host)
        )
        self._complete.save(state.step, args)

    def restore(self, like: TrainState) -> tuple[TrainState | None, list[str]]:
        """The newest good checkpoint, with shapes and shardings of `like`; None without any.

        The mesh of `like` need not be the one that the checkpoint was saved from. Newer ones that
        are damaged are put aside.

        Returns:
          the state, and a line for each damaged checkpoint.

        Raises:
          ValueError: there are checkpoints, and all are damaged; or it is of another model.
        """
        step, found, lines = None, {}, []
        if self._team.is_first:
            step, found = newest_good(self._complete.folder)
            lines = describe(self._complete.folder, found)
        step, lines = self._team.from_first([step, lines])
        if step is None:
            return None, []
        arrays = {"params": like.params, "opt_state": like.opt_state}
        path = self._complete.folder / str(step)
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                restored = reader.restore(
                    epath.Path(path),
                    args=ocp.args.Composite(
                        arrays=ocp.args.StandardRestore(jax.tree.map(_abstract, arrays)),
                        host=ocp.args.JsonRestore(),
                    ),
                )
        except Exception as error:  # Orbax and its parts raise many kinds
            raise ValueError(
                f"the checkpoint {path} is as it was written, and cannot be restored: is it of "
                f"another model or optimizer? ({_first_line(error)})"
            ) from error
        self._complete.put_aside(found)
        lines = [f"{line}; going on from step {step}" for line in lines]
        return TrainState(step=step, host=restored["host"], **restored["arrays"]), lines

    def save_scaling(self, step: int, params: Any) -> None:
        """Keeps the parameters for good."""
        args = ocp.args.Composite(arrays=ocp.args.StandardSave({"params": params}))
        self._scaling.save(step, args)

    def check(self) -> None:
        """Raises what a save in the background has met since the last call."""
        self._complete.check()
        self._scaling.check()

    def wait(self) -> None:
        """Until everything begun is on disk."""
        self._complete.wait()
        self._scaling.wait()

    def let_finish(self) -> None:
        """As `wait`, in a run that has failed already: a save that fails too is only told."""
        for store in (self._complete, self._scaling):
            try:
                store.wait()
            except SaveFailed as failure:
                print(f"warning: {failure}", file=sys.stderr)

    def close(self) -> None:
        self.wait()
        self._complete.close()
        self._scaling.close()


class _Store:
    """One folder of checkpoints: `keep_last` of them, None keeps all."""

    def __init__(self, folder: pathlib.Path, keep_last: int | None, team: hosts.Hosts):
        self.folder = folder if files.is_remote(folder) else folder.absolute()
        self._keep_last, self._team = keep_last, team
        self._writer: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._failure: SaveFailed | None = None
        if team.is_first:
            self._sweep()

    def save(self, step: int, args: ocp.args.Composite) -> None:
        self.wait()
        first = self._team.is_first
        if self._team.from_first(first and step in steps(self.folder)):
            return
        try:
            if first:
                self._discard(step)
                self.folder.mkdir(parents=True, exist_ok=True)
            self._team.barrier()
            if self._writer is None:
                self._writer = _writer(self.folder.name)
            self._writer.save(epath.Path(self._staging(step)), args=args)
        except Exception as error:  # Orbax and its parts raise many kinds
            raise self._failed(step, error) from error
        self._thread = threading.Thread(
            target=self._finish, args=(step, self._writer), name=f"save of step {step}"
        )
        self._thread.start()
        if first:  # the others' part is done when Orbax is
            self._team.hold(self._thread)

    def _finish(self, step: int, writer: ocp.AsyncCheckpointer) -> None:
        """In the background: the manifest, the step's name, then room for the next."""
        try:
            writer.wait_until_finished()
            if not self._team.is_first:
                return
            staging = self._staging(step)
            manifests.write(staging)
            # A name that survives a power cut is to have its files, and older ones go only then.
            files.settle(staging)
            if staging != self.folder / str(step):
                files.rename(staging, self.folder / str(step))
            self._retain()
        except Exception as error:
            self._failure = self._failed(step, error)

    def _failed(self, step: int, error: Exception) -> SaveFailed:
        """The error to raise; what was written of the checkpoint is removed."""
        # What cannot be removed now is swept by the next start.
        if self._team.is_first:
            with contextlib.suppress(OSError):
                self._discard(step)
        kept = steps(self.folder)
        last = f"the last one is of step {kept[-1]}" if kept else "there is none before it"
        return SaveFailed(
            f"the checkpoint of step {step} could not be saved in {self.folder} "
            f"({_first_line(error)}); {last}; the same command goes on from there"
        )

    def _staging(self, step: int) -> pathlib.Path:
        return self.folder / (str(step) if files.is_remote(self.folder) else f"{step}.saving")

    def _retain(self) -> None:
        """Removes all but the newest; called when the newest has just been read and hashed."""
        kept = steps(self.folder)
        if self._keep_last is None:
            return
        for step in kept[: -self._keep_last]:
            self._remove(self.folder / str(step))
        oldest = kept[-self._keep_last :][0]
        for path in self.folder.iterdir():
            name, _, kind = path.name.partition(".")
            if kind == "damaged" and int(name) < oldest:
                _rmtree(path)

    def put_aside(self, damaged: dict[int, manifests.Damage]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        for step in damaged:
            target = self.folder / f"{step}.damaged"
            if target.exists():
                _rmtree(target)
            (self.folder / str(step)).rename(target)

    def _discard(self, step: int) -> None:
        """What an unfinished save of the step has left, Orbax's own temporary folders included."""
        name = self._staging(step).name
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name == name or path.name.startswith(f"{name}.orbax"):
                _rmtree(path)

    def _sweep(self) -> None:
        """Removes what a killed process was writing or removing."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            _, _, kind = path.name.partition(".")
            if kind.startswith(("saving", "deleting", "orbax")):
                _rmtree(path)

    def _remove(self, path: pathlib.Path) -> None:
        """First its name or its manifest, so that half of it is never taken for a checkpoint."""
        if files.is_remote(path):
            (path / manifests.NAME).unlink()
            _rmtree(path)
            return
        going = path.with_name(path.name + ".deleting")
        path.rename(going)
        _rmtree(going)

    def check(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _writer(name: str) -> ocp.AsyncCheckpointer:
    """Directories at once: where that fails, it fails here and not after a timeout."""
    return ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(),
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name),
    )


# ---- reading -------------------------------------------------------------------------------------


def steps(folder: pathlib.Path) -> list[int]:
    """Of the complete checkpoints in a store, ascending."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal()]
    if files.is_remote(folder):
        found = [path for path in found if (path / manifests.NAME).exists()]
    return sorted(int(path.name) for path in found)


def newest_good(folder: pathlib.Path) -> tuple[int | None, dict[int, manifests.Damage]]:
    """The newest step whose files are as they were written, and the newer ones that are not.

    Raises:
      ValueError: there are checkpoints, and all are damaged.
    """
    damaged: dict[int, manifests.Damage] = {}
    for step in reversed(steps(folder)):
        found = manifests.damage(folder / str(step))
        if found is None:
            return step, damaged
        damaged[step] = found
    if damaged:
        raise ValueError(
            f"{'; '.join(describe(folder, damaged))}; there is no good checkpoint to go on from: "
            "put one back from a copy, or choose another --workdir"
        )
    return None, {}


def describe(folder: pathlib.Path, damaged: dict[int, manifests.Damage]) -> list[str]:
    """A line for each, with the file."""
    return [f"checkpoint {folder / str(step)} is damaged ({why})" for step, why in damaged.items()]


def load_params(
    workdir: pathlib.Path,
    like: Any,
    step: int | None = None,
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Any:
    """Parameters only, of the newest good or a given step, complete or scaling.

    Args:
      workdir: run directory.
      like: a tree of arrays or ShapeDtypeStructs; its shardings are kept.
      step: None is the newest complete one.
      warn: is told of newer checkpoints that are damaged.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: it is damaged.
    """
    damage = None
    for name in ("checkpoints", "scaling"):
        folder = workdir / name if files.is_remote(workdir) else (workdir / name).absolute()
        if step is None:
            chosen, damaged = newest_good(folder)
            for line in describe(folder, damaged):
                warn(f"{line}; taking step {chosen}")
        else:
            chosen = step if step in steps(folder) else None
            if chosen is not None and (found := manifests.damage(folder / str(step))) is not None:
                damage, chosen = describe(folder, {step: found})[0], None
        if chosen is not None:
            return _read_params(folder / str(chosen), like)
    if damage is not None:
        raise ValueError(f"{damage}; put it back from a copy, or choose another step")
    wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
    raise FileNotFoundError(f"{workdir} holds no {wanted}; has the run saved one yet?")


def _read_params(path: pathlib.Path, like: Any) -> Any:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(
            epath.Path(path / "arrays"),
            args=ocp.args.PyTreeRestore(
                item={"params": jax.tree.map(_abstract, like)},
                restore_args={"params": _restore_args(like)},
                partial_restore=True,
            ),
        )
    return restored["params"]


def _restore_args(like: Any) -> Any:
    """Where `like` has no layout each of several processes reads the whole into numpy."""
    if jax.process_count() == 1:
        return ocp.checkpoint_utils.construct_restore_args(like)
    return jax.tree.map(
        lambda x: (
            ocp.RestoreArgs(restore_type=np.ndarray)
            if x.sharding is None
            else ocp.checkpoint_utils.construct_restore_args(x)
        ),
        like,
    )


# ---- digests -------------------------------------------------------------------------------------


def params_sha256(params: Any) -> str:
    """One digest of all parameters, in the order of their paths; all hosts must ask for it."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        for block in sharding.whole_blocks(leaf):
            digest.update(np.ascontiguousarray(block).tobytes())
    return digest.hexdigest()


def _abstract(leaf: Any) -> Any:
    return ocp.utils.to_shape_dtype_struct(leaf)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _rmtree(path: pathlib.Path) -> None:
    epath.Path(path).rmtree()
