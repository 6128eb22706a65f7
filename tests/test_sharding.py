"""Training on eight devices, with JAX's own engine: the numbers of one device, and everything where it should be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop import assert_close
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mithril_opt import SGD, Accumulate, AdamW, MixedPrecisionTrainer, MultiOptimizer, state_shardings

# Per layout: how the parameters are sharded over a mesh of 4 × 2, and what takes the slots further.
REPLICATED = {"w1": P(), "b1": P(), "w2": P()}
LAYOUTS = {
    "data": (REPLICATED, None),
    "zero": (REPLICATED, "data"),
    "fsdp": ({"w1": P("data"), "b1": P("data"), "w2": P("data")}, None),
    "tensor": ({"w1": P(None, "model"), "b1": P("model"), "w2": P("model", None)}, None),
    "tensor-zero": ({"w1": P(None, "model"), "b1": P("model"), "w2": P("model", None)}, "data"),
}
SHAPES = {"w1": (8, 16), "b1": (16,), "w2": (16, 4)}
OPTIMIZER = MultiOptimizer(
    {"biases": SGD(learning_rate=0.1, momentum=0.9), "matrices": AdamW(learning_rate=0.02)},
    groups={"biases": "b*", "matrices": ...},
)
TRAINER = MixedPrecisionTrainer(None, Accumulate(OPTIMIZER, every=2), policy="float32", clip_norm=1.0)
AXIS_TYPES = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def make_mesh(axis_type):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))


def make_params():
    normal = np.random.default_rng(0).normal
    return {name: jnp.asarray(normal(size=shape) / 3, jnp.float32) for name, shape in SHAPES.items()}


def batch(seed):
    normal = np.random.default_rng(seed).normal
    return np.float32(normal(size=(32, 8))), np.float32(normal(size=(32, 4)))


def loss(params, x, y, explicit):
    """A perceptron; under explicit axes it says where the parameters are gathered and how products are sharded."""
    if explicit:
        params = {
            name: jax.sharding.reshard(leaf, without_data(jax.typeof(leaf).sharding.spec)) for name, leaf in params.items()
        }
    rows = {"out_sharding": P("data", None)} if explicit else {}
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.mean((jnp.einsum("bh,ho->bo", hidden, params["w2"], **rows) - y) ** 2)


def without_data(spec):
    return P(*(None if entry == "data" else entry for entry in spec))


@functools.partial(jax.jit, static_argnames="explicit")
def gradients(params, x, y, explicit):
    return jax.grad(loss)(params, x, y, explicit)


@functools.cache
def on_one_device():
    params, step = make_params(), jax.jit(TRAINER.update)
    state = TRAINER.init(params)
    for seed in range(6):
        params, state, _ = step(params, gradients(params, *batch(seed), False), state)
    return jax.device_get((params, state))


def on_the_mesh(layout, axis_type, steps=6):
    """Parameters, state and their shardings after some steps, and the compiled update."""
    specs, zero_axis = LAYOUTS[layout]
    mesh, explicit = make_mesh(axis_type), axis_type == AxisType.Explicit
    with jax.set_mesh(mesh):
        own = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        params = jax.device_put(make_params(), own)
        shardings = state_shardings(TRAINER, params, own, zero_axis)
        state = jax.jit(TRAINER.init, out_shardings=shardings)(params)
        rows = NamedSharding(mesh, P("data"))
        update = jax.jit(TRAINER.update, donate_argnums=(0, 2), out_shardings=(own, shardings, NamedSharding(mesh, P())))
        compiled = update.lower(params, params, state).compile()  # also what is run: compiling takes most of the time
        for seed in range(steps):
            grads = gradients(params, *(jax.device_put(part, rows) for part in batch(seed)), explicit)
            given = jax.tree.leaves((params, state))
            params, state, _ = compiled(params, jax.device_put(grads, own), state)
            jax.block_until_ready(params)
            assert all(leaf.is_deleted() for leaf in given)
    return (params, state), (own, shardings), compiled


@AXIS_TYPES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_trains_as_one_device_does_with_everything_where_it_should_be(layout, axis_type):
    trained, shardings, compiled = on_the_mesh(layout, axis_type)
    assert_close(trained, on_one_device())
    for leaf, sharding in zip(jax.tree.leaves(trained), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    # Every buffer is reused, and none is copied or gathered on the way.
    total = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(trained))
    assert compiled.memory_analysis().alias_size_in_bytes == total
    assert compiled.as_text().count(" all-gather(") <= (0 if LAYOUTS[layout][1] is None else len(SHAPES))


@AXIS_TYPES
def test_one_collective_for_the_norm_and_the_finite_check(axis_type):
    _, _, compiled = on_the_mesh("fsdp", axis_type, steps=0)
    text = compiled.as_text()
    assert text.count(" all-reduce(") == 1
    assert not any(f" {name}(" in text for name in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"))


@AXIS_TYPES
def test_zero_leaves_each_device_its_share_of_the_slots(axis_type):
    (params, state), _, _ = on_the_mesh("zero", axis_type, steps=1)
    slots = jax.tree.leaves((state.optimizer.optimizer.slots, state.optimizer.mean))
    assert all(leaf.addressable_shards[0].data.size * 4 == leaf.size for leaf in slots)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
