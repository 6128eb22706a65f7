"""Which sharding each leaf of a state gets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from interop import assert_close
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from zoo import OPTIMIZERS, make_params

from mithril_opt import (
    SGD,
    SOAP,
    Accumulate,
    Adam,
    AdamW,
    Frozen,
    LeafOptimizer,
    MixedPrecisionTrainer,
    MultiOptimizer,
    Record,
    Switch,
    from_optax,
    pytree,
    state_shardings,
)
from mithril_opt.core.slots import state_bytes

MESH = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def sharded(spec, mesh=MESH):
    return NamedSharding(mesh, spec)


def specs(shardings):
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


def test_slots_like_their_parameters_and_the_rest_replicated():
    params = {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
    own = {"w": sharded(P("data", "model")), "b": sharded(P("model"))}
    trainer = MixedPrecisionTrainer(None, Accumulate(Adam(amsgrad=True), every=2))
    state = state_shardings(trainer, params, own)
    assert jax.tree.structure(state) == jax.tree.structure(trainer.init(params))
    assert specs(state.optimizer.mean) == specs(own)
    assert [specs(slot) for slot in state.optimizer.optimizer.slots] == [specs(own)] * 3
    rest = jax.tree.leaves((state.loss_scale, state.optimizer.micro_step, state.optimizer.optimizer.step))
    assert {sharding.spec for sharding in rest} == {P()}


@pytest.mark.parametrize(
    ("shape", "spec", "expected"),
    [
        ((8, 3), P(), P("data", None)),
        ((3, 8), P(), P(None, "data")),
        ((8, 4), P("model"), P("model", "data")),
        ((8, 4), P("model", None), P("model", "data")),
        ((8, 3), P("model"), P(("model", "data"), None)),
        ((8,), P("model"), P(("model", "data"))),
        ((8, 8), P(("model", "data")), P(("model", "data"))),  # is spread already
        ((6, 5), P("model"), P("model")),  # cannot be
        ((), P(), P()),
        ((0, 4), P(), P(None, "data")),
    ],
    ids=str,
)
def test_zero_spreads_along_a_free_dimension_or_a_shared_one(shape, spec, expected):
    state = state_shardings(SGD(momentum=0.9), {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}, sharded(spec), "data")
    assert state.slots.trace["w"].spec == expected
    assert state.step.spec == P()


def test_explicit_axes_share_no_dimension():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit, AxisType.Explicit))
    params = {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}
    assert state_shardings(SGD(momentum=0.9), params, sharded(P("model"), mesh), "data").slots.trace["w"].spec == P("model")


def test_updates_keep_the_shardings_of_explicit_axes_without_being_told():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit, AxisType.Explicit))
    params = {"w": jnp.arange(32.0).reshape(8, 4)}
    expected, _ = AdamW().update(params, params, AdamW().init(params))
    with jax.set_mesh(mesh):
        own = {"w": sharded(P(None, "model"), mesh)}
        shardings = state_shardings(AdamW(), params, own, "data")
        placed, state = jax.device_put(params, own), jax.jit(AdamW().init, out_shardings=shardings)(params)
        new_params, new_state = AdamW().update(placed, placed, state)
        updates, _ = AdamW().compute_updates(placed, placed, state)
    assert new_params["w"].sharding == updates["w"].sharding == own["w"]
    assert new_state.slots.mu["w"].sharding.spec == P("data", "model")
    assert_close(new_params, expected)


def test_the_memory_kind_is_kept():
    own = NamedSharding(MESH, P(), memory_kind="unpinned_host")
    state = state_shardings(SGD(momentum=0.9), {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}, own, "data")
    assert state.slots.trace["w"].memory_kind == "unpinned_host"


# The zoo's parameters: a matrix over each axis, a vector of 3 and a scalar.
OWN = {"embed": P("data"), "body": {"w": P("model"), "b": [P(), P()]}}


def by_path(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, lambda optimizer: MixedPrecisionTrainer(None, optimizer)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule_and_wrapper(name, wrap):
    """A slot whose path ends in that of a parameter of its shape lies like it, everything else everywhere."""
    params, optimizer = make_params(), wrap(OPTIMIZERS[name]())
    layout = jax.tree.map(sharded, OWN)
    slots = by_path(jax.eval_shape(optimizer.init, params))
    for zero_axis in (None, "data"):
        found = by_path(state_shardings(optimizer, params, layout, zero_axis))
        assert found.keys() == slots.keys()
        for path, slot in slots.items():
            like = [p for p, leaf in by_path(params).items() if path.endswith(p) and leaf.shape == slot.shape]
            assert found[path].spec == (by_path(OWN)[like[0]] if like else P()), path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_steps_of_every_rule_and_wrapper_agree(name):
    """Two steps with slots spread over both axes, and results that stay there."""
    params, optimizer = make_params(), OPTIMIZERS[name]()
    layout = jax.tree.map(sharded, OWN)
    shardings = state_shardings(optimizer, params, layout, zero_axis="data")
    placed, state = jax.device_put(params, layout), jax.jit(optimizer.init, out_shardings=shardings)(params)
    step, alone = jax.jit(optimizer.update, out_shardings=(layout, shardings)), (params, optimizer.init(params))
    for seed in (1, 2):
        placed, state = step(placed, make_params(seed=seed), state)
        alone = optimizer.update(alone[0], make_params(seed=seed), alone[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), (placed, state), alone)
    assert all(leaf.sharding == sharding for leaf, sharding in zip(*map(jax.tree.leaves, (state, shardings)), strict=True))


def test_names_do_not_lead_astray():
    params = {
        "mu": {"w": jnp.ones((8, 2))},
        "w": jnp.ones((8, 2)),
        "slots": {"mu": {"w": jnp.ones((8, 2))}},
        "step": jnp.ones(4),
    }
    own = {"mu": {"w": P("data")}, "w": P("model"), "slots": {"mu": {"w": P(None, "model")}}, "step": P("data")}
    state = state_shardings(Adam(), params, jax.tree.map(sharded, own))
    assert specs(state.slots.mu) == specs(state.slots.nu) == own


def test_one_bare_array_and_trees_of_tuples():
    assert state_shardings(Adam(), jnp.ones((8, 2)), sharded(P("data"))).slots.mu.spec == P("data")
    params, own = (jnp.ones(8), [jnp.ones(4)]), (sharded(P("data")), [sharded(P("model"))])
    assert specs(state_shardings(Adam(), params, own).slots.nu) == specs(own)


def test_groups_passengers_and_frozen_leaves():
    params = {"embed": jnp.ones((8, 2)), "w": jnp.ones((8, 2)), "frozen": jnp.ones(3), "n": 3, "name": "layer"}
    own = {"embed": sharded(P("data")), "w": sharded(P("model")), "frozen": sharded(P()), "n": None, "name": None}
    optimizer = MultiOptimizer(
        {"e": Adam(), "f": Frozen(), "rest": SGD(momentum=0.9)}, groups={"e": "embed", "f": "frozen", "rest": ...}
    )
    state = state_shardings(optimizer, params, own)
    assert state.slots["e"].mu["embed"].spec == P("data")
    assert state.slots["rest"].trace["w"].spec == P("model")
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(optimizer.init(params)))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    ("shape", "spec", "axes", "bases"),
    [
        ((8, 4, 4), P("data"), 0, P("data", None, None)),
        ((4, 8, 4, 2), P(None, "data", None, "model"), (1, -1), P("data", "model", None, None)),
        ((8, 8), P("data"), None, P(None, None)),
        ((4, 4, 4), P(None, "data"), 0, P(None, None, None)),
    ],
    ids=str,
)
def test_the_bases_of_soap_lie_as_init_has_them(shape, spec, axes, bases, axis_type):
    """Along the layers as their parameter does, and along no axis of a matrix, whatever is as long."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    optimizer = MultiOptimizer({"all": SOAP(0.1, every=1, unit_axes=axes)}, {"all": ...})
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.arange(np.prod(shape, dtype=np.float32)).reshape(shape), sharded(spec, mesh))}
        state, shardings = optimizer.init(params), state_shardings(optimizer, params, sharded(spec, mesh))
        for leaf, sharding in zip(*map(jax.tree.leaves, (state, shardings)), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim) or leaf.ndim == 0
        slots = shardings.slots["all"]
        assert {sharding.spec for sharding in (*slots.outer["w"], *slots.basis["w"])} == {P(*bases[: len(bases) - 2])}
        state = jax.device_put(state, shardings)
        for _ in range(3):
            params, state = optimizer.update(params, params, state)


def test_zero_spreads_the_bases_of_soap_over_layers_alone():
    slots = state_shardings(SOAP(unit_axes=0), {"w": jnp.ones((8, 4, 4))}, sharded(P()), "data").slots
    assert {sharding.spec for sharding in slots.basis["w"]} == {P("data")}
    slots = state_shardings(SOAP(), {"w": jnp.ones((8, 8))}, sharded(P()), "data").slots
    assert [sharding.spec for sharding in (slots.mu["w"], *slots.basis["w"])] == [P("data", None), P(), P()]


def test_what_is_beside_the_slots_of_a_bare_array_is_none_of_them():
    optimizer = Record(Switch(SGD(momentum=0.9), on=lambda step: 1), size=8)
    state = state_shardings(optimizer, jnp.ones(8), sharded(P("data")))
    assert {sharding.spec for sharding in jax.tree.leaves(state.history)} == {P()}
    assert state.optimizer.optimizer.slots.trace.spec == P("data")
    assert state_bytes(optimizer, jnp.ones(8)) == [32]


def test_states_of_optax():
    params, own = {"w": jnp.ones((8, 2)), "b": jnp.ones(3)}, {"w": sharded(P("data")), "b": sharded(P())}
    transformation = optax.chain(
        optax.masked(optax.adam(0.1), {"w": True, "b": False}), optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9)
    )
    state = state_shardings(from_optax(transformation), params, own)
    assert optax.tree.get(state, "mu")["w"].spec == P("data")
    assert specs(optax.tree.get(state, "trace")) == specs(own)
    assert optax.tree.get(state.slots[1].hyperparams, "learning_rate").spec == P()


class FactoredSlots(NamedTuple):
    row: jax.Array
    wide: jax.Array


@pytree
class Factored(LeafOptimizer):
    """A rule whose slots are not shaped like the parameter."""

    learning_rate: float = 0.1

    def init_leaf(self, param):
        return FactoredSlots(jnp.zeros(param.shape[:1]), jnp.zeros((*param.shape, 2)))

    def update_leaf(self, param, grad, slots, t):
        return grad, slots


def test_slots_of_other_shapes_are_replicated_or_spread():
    params = {"w": jnp.ones((8, 2))}
    state = state_shardings(Factored(), params, sharded(P(None, "model")))
    assert [slot["w"].spec for slot in state.slots] == [P(), P()]
    state = state_shardings(Factored(), params, sharded(P(None, "model")), zero_axis="data")
    assert [slot["w"].spec for slot in state.slots] == [P("data"), P("data", None, None)]


def test_variables_of_nnx_with_their_metadata():
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
    with jax.set_mesh(MESH):
        model = nnx.Linear(8, 4, kernel_init=init, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    own = nnx.get_named_sharding(params, MESH)
    state = state_shardings(Adam(), params, own, zero_axis="data")
    assert {type(leaf) for leaf in jax.tree.leaves(state)} == {NamedSharding}
    assert state.slots.mu["kernel"].get_value().spec == P("data", "model")


# Bad input.


@pytest.mark.parametrize("axis", ["batch", "Data"])
def test_an_axis_that_the_mesh_does_not_have(axis):
    with pytest.raises(ValueError, match=f"the mesh has no axis '{axis}'; its axes are 'data', 'model'"):
        state_shardings(Adam(), {"w": jnp.ones(8)}, sharded(P()), zero_axis=axis)


def test_shardings_that_do_not_fit():
    params = {"a": {"w": jnp.ones(8)}, "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="param_shardings must be one sharding, or a tree of them shaped like params"):
        state_shardings(Adam(), params, {"a": sharded(P())})
    single = SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(TypeError, match=r"sharding of 'a/w' must be a jax.sharding.NamedSharding, got SingleDeviceSharding"):
        state_shardings(Adam(), params, {"a": {"w": single}, "b": sharded(P())})
    with pytest.raises(TypeError, match=r"the sharding of 'b' must be a jax.sharding.NamedSharding, got None"):
        state_shardings(Adam(), params, {"a": {"w": sharded(P())}, "b": None})
    with pytest.raises(ValueError, match="no leaf of params trains"):
        state_shardings(Adam(), {"n": np.arange(3)}, sharded(P()))
