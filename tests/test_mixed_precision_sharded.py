"""A step over eight devices: one collective, one verdict, the numbers of a single device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from steps import scaled, trainer_of
from zoo import bits

from mithril_opt import SGD, Accumulate, AdamW, global_norm


def sharded(axis_type):
    """Parameters and gradients over eight devices, some of them replicated; the gradients have norm > 1."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    shapes = {"a": (16, 3), "b": (8,), "c": {"w": (24, 2)}, "replicated": (5,)}
    shape = lambda node: isinstance(node, tuple)  # noqa: E731
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=shape)
    place = jax.tree.map(lambda s: whole if s == (5,) else split, shapes, is_leaf=shape)
    return params, jax.device_put(params, place)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("optimizer", [AdamW(learning_rate=0.1), Accumulate(AdamW(learning_rate=0.1), 1)])
def test_sharded_steps_need_one_collective_and_agree(axis_type, optimizer):
    trainer = trainer_of(optimizer, clip_norm=0.5)
    single, params = sharded(axis_type)
    state = trainer.init(params)
    compiled = jax.jit(trainer.update).lower(params, scaled(trainer, params, state), state, jnp.float32(1)).compile()
    text = compiled.as_text()
    assert text.count(" all-reduce(") == 1
    assert not any(collective in text for collective in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"))
    new_params, new_state, success = compiled(params, scaled(trainer, params, state), state, jnp.float32(1))
    alone = trainer.update(single, scaled(trainer, single, state), trainer.init(single))
    assert bool(success)
    for ours, expected in zip(jax.tree.leaves((new_params, new_state)), jax.tree.leaves(alone[:2]), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=1e-7)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(new_params), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, old.ndim)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_an_overflow_on_one_shard_is_everyones_verdict(axis_type):
    trainer = trainer_of(AdamW(learning_rate=0.1), clip_norm=0.5)
    _, params = sharded(axis_type)
    state = trainer.init(params)
    update = jax.jit(trainer.update)
    for path, leaf in (("a", 0), ("b", 1), ("replicated", 3)):
        bad = np.array(params[path])
        bad[-1] = np.inf
        grads = {**params, path: jax.device_put(bad, params[path].sharding)}
        new_params, new_state, success = update(params, grads, state)
        assert bits((new_params, new_state.optimizer)) == bits((params, state.optimizer))
        assert all(scalar.sharding.is_fully_replicated for scalar in (success, *new_state.loss_scale))
        assert {float(shard.data) for shard in new_state.loss_scale.scale.addressable_shards} == {2.0**14}
        assert (bool(success), int(new_state.loss_scale.last_bad_leaf)) == (False, leaf)


def test_the_norm_that_clips_is_that_of_a_single_device():
    trainer = trainer_of(SGD(learning_rate=1.0), clip_norm=0.5, loss_scale=1.0)
    single, params = sharded(AxisType.Auto)
    zeros = jax.tree.map(jnp.zeros_like, params)
    steps, *_ = jax.jit(trainer.update)(zeros, params, trainer.init(zeros))
    np.testing.assert_allclose(global_norm(steps), 0.5, rtol=1e-6)
    ratio = float(steps["b"][0]) / float(params["b"][0])
    np.testing.assert_allclose(-0.5 / ratio, global_norm(single), rtol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_data_parallel_under_shard_map(axis_type):
    """The loss varies over the devices, the scale does not; after the mean over replicas there is one verdict."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    trainer = trainer_of(SGD(learning_rate=1.0), loss_scale=2.0**10, policy="float16")

    def step(params, state, x):
        loss_fn = lambda p, x: jnp.mean((x @ p["w"]).astype(jnp.float32))  # noqa: E731
        loss, grads = trainer.value_and_grad(loss_fn)(params, state, x)
        return trainer.update(params, jax.lax.pmean(grads, "data"), state, loss=jax.lax.pmean(loss, "data"))

    specs = (PartitionSpec(), PartitionSpec(), PartitionSpec("data"))
    sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False))
    params = jax.device_put({"w": jnp.ones((3, 2))}, whole)
    state = jax.device_put(trainer.init(params), whole)
    x = np.arange(48, dtype=np.float32).reshape(16, 3) / 64
    new_params, _, success = sharded(params, state, jax.device_put(x, split))
    np.testing.assert_allclose(new_params["w"], 1 - np.stack([x.mean(0)] * 2, 1) / 2, rtol=1e-3)
    assert bool(success)
    x[-1, 0] = 1000  # times the scale no float16
    new_params, state, success = sharded(params, state, jax.device_put(x, split))
    assert bits(new_params) == bits(params)
    assert (bool(success), float(state.loss_scale.scale)) == (False, 2.0**9)


def test_gradients_inside_shard_map_know_over_which_axes_they_vary():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    trainer = trainer_of(loss_scale=4.0)
    state = trainer.init(jnp.ones(3))

    def grads(params, x):
        loss_fn = lambda p, x: jnp.sum(p * x).astype(jnp.float32)  # noqa: E731
        return trainer.value_and_grad(loss_fn)(params, state, x)[1], jax.grad(loss_fn)(params, x)

    spec = PartitionSpec("data")
    scaled_grads, plain = jax.shard_map(grads, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec())(
        jnp.ones(3), jnp.ones((8, 3)).reshape(24)
    )
    np.testing.assert_array_equal(scaled_grads, 4 * plain)
