"""One atomic Orbax checkpoint of everything a run is: parameters, optimiser, and the rest as JSON.

Two stores in a run directory: `checkpoints/`, the last few, complete; `scaling/`, parameters only,
kept at log-spaced training FLOPs for scaling curves. Saving is asynchronous; an error of a save
surfaces at the next call.
"""

import dataclasses
import hashlib
import math
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rpt import ledger as ledger_lib


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes. `host` is JSON: data iterator, ledger, curriculum."""

    step: int
    params: Any
    opt_state: Any
    host: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory.

    Raises (all methods):
      ValueError: a checkpoint that cannot be read.
    """

    def __init__(self, workdir: pathlib.Path, keep_last: int):
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep_last, create=True),
        )
        self._scaling_folder = (workdir / "scaling").absolute()
        self._scaling: ocp.CheckpointManager | None = None

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Begins a save; a step that is already there is left alone."""
        if state.step in self._manager.all_steps():
            return
        arrays = {"params": state.params, "opt_state": state.opt_state}
        self._manager.save(
            state.step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(state.host)
            ),
        )

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint, with shapes and shardings of `like`."""
        step = self._manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self._manager.directory}")
        arrays = {"params": like.params, "opt_state": like.opt_state}
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(jax.tree.map(_abstract, arrays)),
                    host=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # Orbax and its parts raise many kinds
            raise ValueError(
                f"the checkpoint {self._manager.directory / str(step)} is damaged or of another "
                "model; remove its folder to go on from the one before "
                f"({str(error).strip().splitlines()[0][:200]})"
            ) from error
        return TrainState(step=step, host=restored["host"], **restored["arrays"])

    def save_scaling(self, step: int, params: Any) -> None:
        """Keeps the parameters for good."""
        if self._scaling is None:
            self._scaling = ocp.CheckpointManager(self._scaling_folder)
        if step not in self._scaling.all_steps():
            self._scaling.save(step, args=ocp.args.StandardSave({"params": params}))

    def wait(self) -> None:
        """Until everything begun is on disk."""
        self._manager.wait_until_finished()
        if self._scaling is not None:
            self._scaling.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()
        if self._scaling is not None:
            self._scaling.close()


def load_params(workdir: pathlib.Path, like: Any, step: int | None = None) -> Any:
    """Parameters only, of the newest or a given step, complete or scaling.

    Args:
      workdir: run directory.
      like: a tree of arrays or ShapeDtypeStructs; its shardings are kept.
      step: None is the newest complete one.

    Raises:
      FileNotFoundError: there is no such checkpoint.
    """
    for folder, item in (("checkpoints", "arrays"), ("scaling", "default")):
        path = (workdir / folder).absolute()
        steps = sorted(int(p.name) for p in path.glob("*") if p.name.isdecimal())
        if not steps or (step is not None and step not in steps):
            continue
        found = path / str(steps[-1] if step is None else step) / item
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            restored = reader.restore(
                found,
                args=ocp.args.PyTreeRestore(
                    item={"params": jax.tree.map(_abstract, like)},
                    restore_args={"params": ocp.checkpoint_utils.construct_restore_args(like)},
                    partial_restore=True,
                ),
            )
        return restored["params"]
    wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
    raise FileNotFoundError(f"{workdir} holds no {wanted}; has the run saved one yet?")


def crosses_scaling_point(before: ledger_lib.Ledger, after: ledger_lib.Ledger, per_decade: int):
    """Whether training FLOPs passed one of `per_decade` log-spaced points between two ledgers."""
    if not per_decade or not after.training_flops:
        return False

    def index(flops: int) -> int:
        return math.floor(per_decade * math.log10(flops)) if flops else -1

    return index(before.training_flops) != index(after.training_flops)


def params_sha256(params: Any) -> str:
    """One digest of all parameters, in the order of their paths."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _abstract(leaf: Any) -> Any:
    return ocp.utils.to_shape_dtype_struct(leaf)
