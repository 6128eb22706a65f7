"""The updates that `to_optax` hands over: their dtypes, odd leaves, and what it refuses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interop import assert_close, promotion  # noqa: F401
from zoo import bits, make_params, specs

from mithril_opt import SGD, Accumulate, Adam, AdamW, Frozen, MultiOptimizer, to_optax

pytestmark = pytest.mark.usefixtures("promotion")


def test_updates_survive_where_new_minus_old_would_not():
    params = {"w": jnp.full((4,), 256.0, jnp.bfloat16)}
    grads = {"w": jnp.ones((4,), jnp.float32)}
    updates, _ = to_optax(SGD(learning_rate=1e-3)).update(grads, SGD().init(params), params)
    assert updates["w"].dtype == jnp.float32
    np.testing.assert_allclose(updates["w"], -1e-3, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_gradients_get_the_rounded_float32_update(dtype):
    params, grads = make_params(dtype), make_params(dtype, seed=1)
    optimizer = Adam(learning_rate=1e-3)
    updates, state = to_optax(optimizer).update(grads, optimizer.init(params), params)
    exact, _ = optimizer.compute_updates(params, grads, optimizer.init(params))
    assert specs(updates)[1] == specs(grads)[1]
    assert bits(updates) == bits(jax.tree.map(lambda leaf: leaf.astype(dtype), exact))
    assert all(slot.dtype == jnp.float32 for slot in jax.tree.leaves(state.slots))


def test_complex_gradients_come_conjugated_by_the_caller():
    params = make_params(jnp.complex64)
    grads = make_params(jnp.complex64, seed=1)
    optimizer = Adam(learning_rate=0.1)
    updates, _ = to_optax(optimizer).update(jax.tree.map(jnp.conj, grads), optimizer.init(params), params)
    assert_close(updates, optimizer.compute_updates(params, grads, optimizer.init(params))[0])
    theirs = optax.adam(0.1)
    assert_close(updates, theirs.update(jax.tree.map(jnp.conj, grads), theirs.init(params), params)[0])


def test_abstract_inputs():
    params = make_params()
    abstract = jax.eval_shape(lambda: params)
    transformation = to_optax(AdamW())
    assert specs(transformation.init(abstract)) == specs(transformation.init(params))
    updates, _ = jax.eval_shape(transformation.update, abstract, jax.eval_shape(transformation.init, params), abstract)
    assert jax.tree.map(lambda leaf: leaf.shape, updates) == jax.tree.map(lambda leaf: leaf.shape, params)


def test_python_scalar_leaves():
    transformation = to_optax(SGD(learning_rate=0.5))
    updates, _ = transformation.update({"a": 2.0}, transformation.init({"a": 1.0}), {"a": 1.0})
    assert updates == {"a": -1.0}
    assert optax.apply_updates({"a": 1.0}, updates) == {"a": 0.0}


def test_leaves_that_do_not_train_get_updates_that_change_nothing():
    params = {"w": jnp.ones(2), "count": jnp.arange(3), "flag": jnp.bool(True), "n": 4}
    grads = {"w": jnp.ones(2), "count": np.zeros(3, jax.dtypes.float0), "flag": jnp.bool(True), "n": 1}
    updates, _ = to_optax(SGD(learning_rate=1.0)).update(grads, SGD().init(params), params)
    new_params = optax.apply_updates(params, updates)
    assert bits(new_params) == bits({"w": jnp.zeros(2), "count": jnp.arange(3), "flag": jnp.bool(True), "n": jnp.int32(4)})


def test_a_frozen_group_gets_zeros():
    params = make_params()
    optimizer = MultiOptimizer({"embed": Frozen(), "body": SGD()}, groups={"embed": "embed", "body": ...})
    updates, _ = to_optax(optimizer).update(params, optimizer.init(params), params)
    assert not np.any(updates["embed"])
    assert np.any(updates["body"]["w"])


# Bad input.


def test_a_transformation_is_no_optimizer():
    with pytest.raises(TypeError, match=r"takes an Optimizer, got GradientTransformationExtraArgs; .* there is from_optax"):
        to_optax(optax.adam(0.1))


class Other(NamedTuple):
    count: int


@pytest.mark.parametrize(
    "state", [optax.adam(0.1).init(make_params()), Other(0), make_params()], ids=["optax", "tuple", "tree"]
)
def test_another_state(state):
    params = make_params()
    with pytest.raises(ValueError, match=r"to_optax\(Adam\).update takes \(updates, state, params\) with the OptState"):
        to_optax(Adam()).update(params, state, params)
    with pytest.raises(ValueError, match="with the AccumulateState that init returned"):
        to_optax(Accumulate(Adam(), 2)).update(params, state, params)


def test_state_of_another_rule_or_other_parameters():
    params = make_params()
    with pytest.raises(ValueError, match="does not belong to this optimizer and these parameters"):
        to_optax(Adam()).update(params, SGD(momentum=0.9).init(params), params)
    with pytest.raises(ValueError, match=r"at 'embed' the parameter is .* but there is no gradient"):
        to_optax(Adam()).update({"body": params["body"]}, Adam().init(params), params)
