"""One process of a run of several: writes down what it read, sampled and learned.

    python tests/rpt/hosts_process.py WHERE FOLDER JSON

JSON has the loop ('train' or 'pretrain'), `changes` of the tiny experiment by dotted names, and
maybe `stop_after` steps (asked of the last process only), `kill` [index, step], `fail` index, or
`replay`, the folder of a run whose rollouts take the place of this one's, so that updates are of
equal tokens.
FOLDER/run is the run directory, FOLDER/seen-INDEX.npz what is compared.
"""

import json
import os
import pathlib
import signal
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import numpy as np

from rpt import config, experience, hosts, pretrain, rollout, sharding, train, update
from tests.rpt import tiny_experiment


class Recorder:
    """Stands around the parts of a step."""

    def __init__(self, given: dict[str, Any], team: hosts.Hosts):
        self.seen: dict[str, np.ndarray] = {}
        self._kill, self._team = given.get("kill"), team
        self._replay = None
        if "replay" in given:
            self._replay = np.load(pathlib.Path(given["replay"]) / "seen-0.npz")
        self._rollout, self._gradients = rollout.rollout, update.gradients
        self._collect, self._ntp = experience.collect, update.ntp_gradients
        rollout.rollout, update.gradients = self.rollout, self.gradients
        experience.collect, update.ntp_gradients = self.collect, self.ntp_gradients

    def collect(self, task, params, batch, kv, entropy_BS, step):
        if self._kill == [self._team.index, step]:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen[f"documents/{step}"] = np.stack([batch.document_ids_B, batch.starts_B], axis=1)
        return self._collect(task, params, batch, kv, entropy_BS, step)

    def rollout(self, *args, step, **kwargs):
        found = self._rollout(*args, step=step, **kwargs)
        arrays = {k: v for k, v in found._asdict().items() if isinstance(v, np.ndarray)}
        self.seen |= {f"{name}/{step}": array for name, array in arrays.items()}
        if self._replay is None:
            return found
        own = sharding.own_block(len(arrays["tokens_BRT"]) * self._team.count)
        rows = slice(own.start, own.stop)
        return found._replace(**{name: self._replay[f"{name}/{step}"][rows] for name in arrays})

    def gradients(self, *args):
        grads, terms = self._gradients(*args)
        self._keep(grads)
        return grads, terms

    def ntp_gradients(self, model, params, trunk):
        self.seen[f"rows/{len(self.seen)}"] = sharding.own_rows(trunk.tokens_BS)
        return self._ntp(model, params, trunk)

    def _keep(self, grads: Any) -> None:
        """Of the first update, each leaf whole."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
            name = "gradient/" + jax.tree_util.keystr(path)
            blocks = list(sharding.whole_blocks(leaf))
            self.seen.setdefault(name, np.concatenate(blocks) if leaf.ndim else blocks[0])


def _tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def main() -> None:
    where, folder, given = sys.argv[1], pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
    settings = tiny_experiment.get_config()
    settings.update_from_flattened_dict({k: _tuples(v) for k, v in given["changes"].items()})
    with hosts.joined(where) as team:
        recorder = Recorder(given, team)
        stop = None
        if "stop_after" in given and team.index == team.count - 1:
            stop = tiny_experiment.StopAfter(given["stop_after"])
        if given.get("fail") == team.index:
            raise ValueError("no such shard")
        loop = {"train": train.train, "pretrain": pretrain.pretrain}[given["loop"]]
        loop(config.from_config_dict(settings), folder / "run", stop=stop, team=team)
        np.savez(folder / f"seen-{team.index}.npz", **recorder.seen)


if __name__ == "__main__":
    main()
