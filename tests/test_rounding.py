"""What 16 bits make infinite is infinite, also where a compiler drops the conversion to 16 bits and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations
from steps import trainer_of

from mithril_opt import SGD, Accumulate, global_norm
from mithril_opt.core import tree

VALUES = [0.0, -0.0, 1.0, 1e-7, 1e-40, 65504.0, 65519.0, 65520.0, -65520.0, 1e38, 3.39e38, 3.4e38, -3.4e38, np.inf, np.nan]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_stored_is_infinite_where_the_dtype_is(dtype, monkeypatch):
    """The conversions are dropped by hand: what 16 bits hold is widened to what they were made of."""
    values = np.float32(VALUES)
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    expected = np.where(np.isinf(narrow.astype(np.float32)), np.copysign(np.inf, values), values)
    assert np.isinf(expected).sum() > 1
    monkeypatch.setattr(tree, "widen", lambda leaf: jnp.asarray(values))
    np.testing.assert_array_equal(jax.jit(tree.stored)(narrow), expected)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
def test_stored_is_the_number_itself(dtype):
    """Subnormal numbers too, which a rounding to 16 bits would lose."""
    values = jnp.asarray([0.0, 1.5, -(2.0**-14), 2.0**-24, 6e4], dtype)
    np.testing.assert_array_equal(tree.stored(values), np.asarray(values, tree.stored(values).dtype))
    np.testing.assert_allclose(global_norm([jnp.full(4, 2.0**-20, dtype)]), 2.0**-19, rtol=1e-6)


def roundings(trainer, params, grads):
    """The shapes of what is rounded to float16 and to bfloat16, but stays float32, in a step."""
    jaxpr = jax.make_jaxpr(trainer.update)(params, grads, trainer.init(params)).jaxpr
    found = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "reduce_precision"]
    assert all(eqn.invars[0].aval.dtype == jnp.float32 for eqn in found)
    return sorted((eqn.params["exponent_bits"], *eqn.invars[0].aval.shape) for eqn in found)


@pytest.mark.parametrize("optimizer", [SGD(), Accumulate(SGD(), 2)], ids=["sgd", "accumulate"])
def test_the_verdict_looks_at_what_is_stored(optimizer):
    """At gradients, and at the float16 parameters that come of them."""
    trainer = trainer_of(optimizer)
    params = {"a": jnp.ones(2, jnp.float16), "b": jnp.ones(3, jnp.bfloat16), "c": jnp.ones(4)}
    assert roundings(trainer, params, params) == [(5, 2), (5, 2), (8, 3)]
    grads = {"a": jnp.ones(2), "b": jnp.ones(3, jnp.float16), "c": jnp.ones(4)}
    assert roundings(trainer, params, grads) == [(5, 2), (5, 3)]
