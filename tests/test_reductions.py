"""Norms and means over the units of a leaf, against NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mithril_opt import LeafOptimizer, number, pytree, static
from mithril_opt.core.numerics import safe_divide, safe_sqrt
from mithril_opt.core.reductions import norm_ratio, unit_mean, unit_norm, unit_rms

NORMAL = np.random.default_rng(3).normal
# For each choice of units, the axes that are left to reduce.
UNITS = {None: (0, 1, 2), (): (0, 1, 2), 0: (1, 2), (0,): (1, 2), -1: (0, 1), (0, 1): (2,), (2, 0): (1,), (0, 1, 2): ()}


def array(dtype, shape=(4, 3, 2)):
    imaginary = 1j if jnp.issubdtype(dtype, jnp.complexfloating) else 0
    return (NORMAL(size=shape) + imaginary * NORMAL(size=shape)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("units", UNITS, ids=str)
def test_norm_mean_and_rms(units, dtype):
    x = array(dtype)
    squares = np.abs(x.astype(np.complex128)) ** 2
    expected = np.sum(squares, axis=UNITS[units], keepdims=True)
    count = math.prod(x.shape[axis] for axis in UNITS[units])
    actual = unit_norm(jnp.asarray(x), units)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, np.sqrt(expected), rtol=1e-6)
    np.testing.assert_allclose(unit_rms(jnp.asarray(x), units), np.sqrt(expected / count), rtol=1e-6)
    np.testing.assert_allclose(unit_mean(jnp.asarray(x), units), x.mean(UNITS[units], keepdims=True), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-20, 1e-6, 1.0, 1e15, 1e25, 3e37])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_a_norm_neither_overflows_nor_underflows(dtype, scale):
    x = jnp.asarray(array(dtype) * np.float32(scale))
    expected = np.linalg.norm(np.asarray(x).astype(np.complex128))
    np.testing.assert_allclose(jax.jit(unit_norm, static_argnums=1)(x, None), np.full((1, 1, 1), expected), rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_a_quotient_is_not_divided_again(scale):
    """XLA makes one division of two, whose denominator then underflows."""
    x, y = jnp.asarray([3.0, 4.0]) * scale, jnp.float32(1e-6)
    norm = jax.jit(lambda x, y: unit_norm(x / (y + 1e-7), None))(x, y)
    np.testing.assert_allclose(norm, [np.float32(5.0 * scale / 1.1e-6)], rtol=1e-5)


def test_units_of_different_scales_do_not_disturb_each_other():
    x = array("float32", (3, 5)) * np.float32([[1e-30], [1.0], [1e30]])
    expected = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(unit_norm(jnp.asarray(x), 0), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_a_mean_does_not_overflow(dtype, count):
    x = jnp.asarray(np.full((2, count), [[3e38], [-3e38]], dtype))
    np.testing.assert_allclose(jax.jit(unit_mean, static_argnums=1)(x, 0), [[3e38], [-3e38]], rtol=1e-6)
    assert not np.isfinite(unit_mean(jnp.asarray([[np.inf, 1.0]], dtype), 0)).any()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_hidden(bad):
    x = jnp.asarray([[1.0, 2.0], [3.0, bad]])
    assert np.isfinite(unit_norm(x, 0)).ravel().tolist() == [True, False]


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,)])
def test_small_and_empty_arrays(shape):
    x = jnp.full(shape, -2.0)
    assert unit_norm(x, None).ravel().tolist() == [2.0 if x.size else 0.0]
    assert unit_rms(x, None).ravel().tolist() == [2.0 if x.size else 0.0]


@pytest.mark.parametrize("function", [unit_norm, unit_rms])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_the_derivative_is_that_of_a_norm_and_0_at_0(function, dtype):
    x = array(dtype, (2, 5))
    x[0] = 0
    slope = jax.grad(lambda x: jnp.sum(function(x, 0)))(jnp.asarray(x))
    size = math.sqrt(5) if function is unit_rms else 1
    np.testing.assert_allclose(slope[1], np.conj(x[1]) / np.linalg.norm(x[1]) / size, rtol=1e-5)
    np.testing.assert_array_equal(slope[0], 0)


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e37])
def test_the_derivative_at_extreme_scales(scale):
    x = array("float32", (5,)) * np.float32(scale)
    slope = jax.grad(lambda x: jnp.sum(unit_norm(x, None)))(jnp.asarray(x))
    np.testing.assert_allclose(slope, x / np.linalg.norm(x.astype(np.float64)), rtol=1e-5)


def test_a_root_and_a_quotient_at_zero():
    value, slope = jax.vmap(jax.value_and_grad(safe_sqrt))(jnp.asarray([0.0, 4.0, np.inf, np.nan]))
    np.testing.assert_array_equal(value, [0, 2, np.inf, np.nan])
    np.testing.assert_array_equal(slope[:3], [0, 0.25, 0])
    x, y = jnp.asarray([0.0, 3.0, 3.0]), jnp.asarray([0.0, 0.0, 2.0])
    np.testing.assert_array_equal(safe_divide(x, y), [0, 0, 1.5])
    slopes = jax.vmap(jax.grad(safe_divide, argnums=(0, 1)))(x, y)
    np.testing.assert_array_equal(slopes, [[0, 0, 0.5], [0, 0, -0.75]])


def test_a_quotient_of_arrays_that_are_sharded_differently():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    place = lambda array, *spec: jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
    quotient = jax.jit(safe_divide)(place(jnp.ones(8), "x"), place(jnp.arange(8.0)))
    assert quotient.sharding.spec == jax.P("x")
    np.testing.assert_array_equal(quotient, [0, *(1 / np.arange(1, 8, dtype=np.float32))])


def test_a_ratio_of_norms_is_1_where_one_is_0():
    a, b = jnp.asarray([0.0, 0.0, 3.0, 3.0]), jnp.asarray([0.0, 2.0, 0.0, 2.0])
    np.testing.assert_array_equal(norm_ratio(a, b), [1, 1, 1, 1.5])
    slopes = jax.vmap(jax.grad(norm_ratio, argnums=(0, 1)))(a, b)
    np.testing.assert_array_equal(slopes, [[0, 0, 0, 0.5], [0, 0, 0, -0.75]])


# The field of a rule.


@pytree
class Unit(LeafOptimizer):
    """p ← p − η ‖g‖, which shows what the units are."""

    learning_rate: float = number(default=1.0, minimum=0)
    unit_axes: object = static(default=None)

    def init_leaf(self, param):
        return None

    def update_leaf(self, param, grad, slots, t):
        return jnp.broadcast_to(unit_norm(grad, self.unit_axes), param.shape), slots


PARAMS = {"layers": {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)}, "head": jnp.zeros((3, 2))}
GRADS = {"layers": {"w": jnp.diag(jnp.arange(1.0, 4.0))[:, :2], "b": jnp.arange(3.0)}, "head": jnp.ones((3, 2)) / jnp.sqrt(6.0)}


def stacked(path, leaf):
    return 0 if path.startswith("layers/") else None


def test_a_rule_takes_axes_or_a_function_of_the_leaf():
    new, _ = Unit(unit_axes=stacked).update(PARAMS, GRADS, Unit(unit_axes=stacked).init(PARAMS))
    np.testing.assert_allclose(new["layers"]["w"], -np.array([[1, 1], [2, 2], [0, 0]]), rtol=1e-6)
    np.testing.assert_allclose(new["layers"]["b"], [0, -1, -2], rtol=1e-6)
    np.testing.assert_allclose(new["head"], -1, rtol=1e-6)
    whole, _ = Unit().update(PARAMS, GRADS, Unit().init(PARAMS))
    np.testing.assert_allclose(whole["layers"]["w"], -math.sqrt(5), rtol=1e-6)
    last, _ = Unit(unit_axes=-1).update(PARAMS["head"], GRADS["head"], Unit().init(PARAMS["head"]))
    np.testing.assert_allclose(last, -math.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("axes", [1, -2, (0, 0), (0, -1), (0, 1), 0.5, [0], "first", True])
def test_axes_that_a_leaf_does_not_have(axes):
    params = {"w": jnp.zeros(3)}
    optimizer = Unit(unit_axes=lambda path, leaf: axes)
    with pytest.raises(ValueError, match=r"at 'w': Unit.unit_axes must be different axes of \(3,\), got "):
        optimizer.init(params)
    with pytest.raises(ValueError, match=r"at 'w': Unit.unit_axes must be different axes of \(3,\), got "):
        optimizer.update(params, params, Unit().init(params))


@pytest.mark.parametrize("axes", [1.0, [0], "first", (0, 1.0), True, (None,)])
def test_what_are_no_axes(axes):
    with pytest.raises(TypeError, match="Unit: unit_axes must be an axis, a tuple of axes, None or a function"):
        Unit(unit_axes=axes)
