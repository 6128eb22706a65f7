"""Training that is stopped in the middle, saved through what people save with, and resumed: the same bits as without."""

import functools
import pickle
import re

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
import safetensors.flax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from steps import scaled, spoil
from zoo import bits, make_params

from mithril_opt import (
    Accumulate,
    AdamW,
    LinearWarmupScheduler,
    MixedPrecisionTrainer,
    ReduceLROnPlateau,
    from_state_dict,
    state_shardings,
    to_state_dict,
)

SCHEDULE = LinearWarmupScheduler(2, 0.01, 0.1, after_scheduler=ReduceLROnPlateau(0.1, factor=0.5, patience=0))
TRAINER = MixedPrecisionTrainer(
    None, Accumulate(AdamW(learning_rate=SCHEDULE, weight_decay=SCHEDULE), every=3), clip_norm=1.0, growth_interval=2
)
STEPS = 19
STOPPED_AT = 10  # inside a window, after overflows, growth of the scale and reductions of the rate
OVERFLOWS = (2, 8, 13)


@jax.jit
def step(params, state, grads, overflows):
    """A step of training in which the gradients overflow on demand, and the metric that the schedule follows."""
    grads = scaled(TRAINER, grads, state)
    grads = jax.tree.map(functools.partial(jnp.where, overflows), spoil(grads), grads)
    params, state, _ = TRAINER.update(params, grads, state)
    return params, state._replace(optimizer=TRAINER.optimizer.observe(state.optimizer, jnp.float32(1.0)))


def train(params, state, steps, place=lambda tree: tree):
    for i in steps:
        params, state = step(params, state, place(make_params(seed=i)), i in OVERFLOWS)
    return params, state


def orbax_trees(saved, template, folder):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "tree", saved)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "tree", template)


def orbax_flat(saved, template, folder):
    abstract = jax.tree.map(orbax.checkpoint.utils.to_shape_dtype_struct, to_state_dict(saved))
    return from_state_dict(template, orbax_trees(to_state_dict(saved), abstract, folder))


def with_safetensors(saved, template, folder):
    safetensors.flax.save_file({name: jnp.asarray(value) for name, value in to_state_dict(saved).items()}, folder / "state")
    return from_state_dict(template, safetensors.flax.load_file(folder / "state"))


def with_numpy(saved, template, folder):
    np.savez(folder / "state.npz", **to_state_dict(saved))
    with np.load(folder / "state.npz") as file:
        return from_state_dict(template, file)


def with_flax_bytes(saved, template, folder):
    (folder / "state").write_bytes(flax.serialization.to_bytes(saved))
    return flax.serialization.from_bytes(template, (folder / "state").read_bytes())


def with_flax_flat(saved, template, folder):
    (folder / "state").write_bytes(flax.serialization.msgpack_serialize(jax.device_get(to_state_dict(saved))))
    return from_state_dict(template, flax.serialization.msgpack_restore((folder / "state").read_bytes()))


def with_pickle(saved, template, folder):
    return pickle.loads(pickle.dumps(saved))


@functools.cache
def uninterrupted():
    return train(make_params(), TRAINER.init(make_params()), range(STEPS))


WAYS = [orbax_trees, orbax_flat, with_safetensors, with_numpy, with_flax_bytes, with_flax_flat, with_pickle]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(way, tmp_path):
    stopped = train(make_params(), TRAINER.init(make_params()), range(STOPPED_AT))
    assert 0 < int(stopped[1].optimizer.micro_step) < 3
    assert int(stopped[1].loss_scale.skipped) == 2
    params, state = way(stopped, (make_params(), TRAINER.init(make_params())), tmp_path)
    assert bits((params, state)) == bits(stopped)
    assert bits(train(params, state, range(STOPPED_AT, STEPS))) == bits(uninterrupted())
    assert float(TRAINER.optimizer.get_learning_rate(state.optimizer)) < 0.1


def shardings(shape, names, embed, rest):
    """Shardings of `make_params()` and of the trainer's state on a mesh."""
    devices = jax.devices()[: np.prod(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)
    own = jax.tree.map(lambda _: NamedSharding(mesh, rest), make_params())
    own["embed"] = NamedSharding(mesh, embed)
    return own, state_shardings(TRAINER, make_params(), own)


@pytest.mark.parametrize("way", [orbax_trees, orbax_flat], ids=["trees", "flat"])
def test_saved_on_one_mesh_and_restored_onto_another(way, tmp_path):
    first = shardings((4,), ("data",), PartitionSpec("data"), PartitionSpec())
    second = shardings((2, 3), ("x", "y"), PartitionSpec("x", "y"), PartitionSpec())
    start = jax.device_put((make_params(), TRAINER.init(make_params())), first)
    place = functools.partial(jax.device_put, device=first[0])
    stopped = train(*start, range(STOPPED_AT), place)
    assert stopped[1].optimizer.mean["embed"].sharding.is_equivalent_to(first[0]["embed"], 2)

    shapes = jax.eval_shape(lambda: start)
    as_template = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    restored = way(stopped, jax.tree.map(as_template, shapes, second), tmp_path)
    assert bits(restored) == bits(stopped)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == second
    place = functools.partial(jax.device_put, device=second[0])
    resumed = train(*restored, range(STOPPED_AT, STEPS), place)
    for actual, expected in zip(jax.tree.leaves(resumed), jax.tree.leaves(uninterrupted()), strict=True):
        np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_another_model_changes_nothing(tmp_path):
    state = TRAINER.init(make_params())
    other = TRAINER.init({**make_params(), "embed": jnp.ones((7, 3))})
    before = bits(state)
    with pytest.raises(ValueError, match=re.escape("expected float32[7,3] but found float32[4,3]: optimizer/mean/embed")):
        with_safetensors(state, other, tmp_path)
    assert bits(state) == before
