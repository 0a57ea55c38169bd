"""A checkpoint of one mesh is restored onto another. Run by test_eight_devices.py."""

import jax
import numpy as np

from rpt import checkpoint, loading, optimizers, sharding

MESHES = {
    "fsdp4_tensor2": sharding.MeshConfig(fsdp=4, tensor=2),
    "replica2_fsdp2_tensor2": sharding.MeshConfig(replica=2, fsdp=2, tensor=2),
    "fsdp8": sharding.MeshConfig(),
}


def state(model, params, name: str, step: int) -> checkpoint.TrainState:
    placed = loading.place(sharding.make_mesh(MESHES[name], 8), model, params)
    opt_state = optimizers.init_state(optimizers.make(optimizers.OptimizerConfig()), placed)
    return checkpoint.TrainState(step, placed, opt_state, {"name": name})


def test_a_checkpoint_goes_onto_another_mesh_shape(tiny_model, tiny_params, tmp_path):
    zeros = jax.tree.map(np.zeros_like, tiny_params)
    saved = state(tiny_model, tiny_params, "fsdp4_tensor2", 5)
    store = checkpoint.Checkpoints(tmp_path, 1)
    store.save(saved)
    store.wait()
    for name in MESHES:
        like = state(tiny_model, zeros, name, 0)
        found, lines = store.restore(like)
        assert found is not None
        assert (found.step, found.host, lines) == (5, {"name": "fsdp4_tensor2"}, [])
        for x, wanted, layout in zip(
            *map(jax.tree.leaves, (found.params, tiny_params, like.params)), strict=True
        ):
            np.testing.assert_array_equal(np.asarray(x), wanted)
            assert x.sharding == layout.sharding
        for x, wanted, layout in zip(
            *map(jax.tree.leaves, (found.opt_state, saved.opt_state, like.opt_state)), strict=True
        ):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(wanted))
            assert x.sharding == layout.sharding
    store.close()
