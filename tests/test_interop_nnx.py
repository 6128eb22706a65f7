"""Variables of flax nnx: their metadata and shardings reach the slots as they reach optax's."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from interop import promotion  # noqa: F401
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mithril_opt import Adam, to_optax

pytestmark = pytest.mark.usefixtures("promotion")


@pytest.fixture(name="model")
def fixture_model():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
    with jax.set_mesh(mesh):
        yield nnx.Linear(8, 4, kernel_init=init, rngs=nnx.Rngs(0))


def test_slots_have_the_metadata_that_optax_s_have(model):
    ours = nnx.Optimizer(model, to_optax(Adam()), wrt=nnx.Param).opt_state.slots
    theirs = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param).opt_state[0]
    for name in ("kernel", "bias"):
        for slot, expected in ((ours.mu, theirs.mu), (ours.nu, theirs.nu)):
            assert type(slot[name]) is type(expected[name])
            assert slot[name].get_metadata() == expected[name].get_metadata()
    assert ours.mu["kernel"].get_metadata()["out_sharding"] == (None, "model")


def test_a_step_keeps_metadata_and_shardings(model):
    optimizer = nnx.Optimizer(model, to_optax(Adam()), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.mean(model(jnp.ones((16, 8))) ** 2))(model))

    step(model, optimizer)
    for variable in (model.kernel, optimizer.opt_state.slots.mu["kernel"]):
        assert variable.get_value().sharding.spec == P(None, "model")
        assert variable.get_metadata()["out_sharding"] == (None, "model")


def test_a_state_of_variables_is_updated_as_a_tree(model):
    params = nnx.state(model, nnx.Param)
    new, state = jax.jit(Adam().update)(params, params, Adam().init(params))
    for variable in (new["kernel"], state.slots.nu["kernel"]):
        assert isinstance(variable, nnx.Param)
        assert variable.get_metadata() == params["kernel"].get_metadata()
    nnx.update(model, new)
    assert model.kernel.get_value() is new["kernel"].get_value()
