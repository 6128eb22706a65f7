"""The rules that reduce over a leaf, at the ends of what floats hold, on many devices, as arguments of jit.

Their numbers are in test_papers_factored.py, what stacks of layers do in test_stacks.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from trajectories import trajectory_of

from mithril_opt import LAMB, LARS, Adafactor, AdamW

# Each rule with everything on that divides.
EXTREME = {
    "lamb": lambda **more: LAMB(weight_decay=0.1, trust_max=10.0, **more),
    "lars": lambda **more: LARS(weight_decay=0.1, **more),
    "lars-plain": lambda **more: LARS(momentum=0.0, **more),
    "adamw": lambda **more: AdamW(nesterov=True, cautious=True, update_clip=0.5, **more),
    "adamw-decay": lambda **more: AdamW(decay="corrected", max_learning_rate=0.1, **more),
    "adafactor": lambda **more: Adafactor(weight_decay=0.1, **more),
    "adafactor-factored": lambda **more: Adafactor(beta1=0.5, min_dim_size_to_factor=2, **more),
}
NO_EPSILON = dict(epsilon=0.0)
NO_EPSILONS = dict(epsilon1=0.0, epsilon2=0.0)
WITHOUT_EPSILON = {rule: NO_EPSILONS if rule.startswith("adafactor") else NO_EPSILON for rule in EXTREME}


@pytest.mark.parametrize("epsilon", [False, True], ids=["without-epsilon", "epsilon"])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("rule", EXTREME)
def test_updates_and_their_derivatives_are_finite_at_zero(rule, dtype, epsilon):
    optimizer = EXTREME[rule](**({} if epsilon else WITHOUT_EPSILON[rule]))
    # Each pair of a parameter and a gradient that may be 0, and vectors whose elements are now and then.
    pairs = {f"{p:g} {g:g}": (jnp.full((3, 2), p, dtype), jnp.full((3, 2), g, dtype)) for p in (0.0, 1.0) for g in (0.0, 1.0)}
    pairs["sparse"] = jnp.asarray([0, 1, 0], dtype), jnp.asarray([0, 0, 1], dtype)
    params, grads = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))

    def loss(optimizer, params, grads):
        step = lambda carry, _: (optimizer.update(carry[0], grads, carry[1]), None)  # noqa: E731
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=2)
        return sum(jnp.sum(jnp.abs(leaf.astype(jnp.complex64) - 3) ** 2) for leaf in jax.tree.leaves(params))

    value, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(optimizer, params, grads)
    assert np.isfinite(value)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.isfinite(np.asarray(slope, np.complex64)).all(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("rule", EXTREME)
def test_a_zero_gradient_without_decay_moves_nothing(rule):
    optimizer = EXTREME[rule](decay_mask=lambda path, leaf: False, **WITHOUT_EPSILON[rule])
    params = {"w": jnp.ones((3, 2)), "zero": jnp.zeros(3)}
    new, _ = optimizer.update(params, jax.tree.map(jnp.zeros_like, params), optimizer.init(params))
    jax.tree.map(np.testing.assert_array_equal, new, params)


@pytest.mark.parametrize("rule", EXTREME)
def test_gradients_that_begin_with_zero(rule):
    optimizer, params = EXTREME[rule](), {"w": jnp.ones((3, 2)), "zero": jnp.zeros(3)}
    nothing, ones = (jax.tree.map(lambda leaf, x=x: jnp.full_like(leaf, x), params) for x in (0.0, 1.0))
    trajectory = trajectory_of(optimizer, params, [nothing, ones, nothing, ones])
    assert all(np.isfinite(leaf).all() for leaf in trajectory.values())
    assert all((leaf[1] < leaf[0]).all() for leaf in trajectory.values())


OVERFLOWING = {
    "lamb": (LAMB(0.5), 1.0),
    "adamw": (AdamW(0.5, weight_decay=0.0), 1.0),
    "adamw-decay": (AdamW(0.5, weight_decay=0.5), 0.75**2),
    "adamw-bounded": (AdamW(0.5, update_clip=1.0), np.nan),
    "adafactor": (Adafactor(0.5), 1.0),
    "adafactor-factored": (Adafactor(0.5, min_dim_size_to_factor=2), np.nan),
}


@pytest.mark.parametrize("rule", OVERFLOWING)
def test_gradients_whose_squares_are_infinite(rule):
    """What the docstrings say: from then on such an element stays where it is, but for the decay, or its leaf is NaN."""
    optimizer, expected = OVERFLOWING[rule]
    params = jnp.ones((2, 2))
    huge = params.at[0, 0].set(1e25)
    actual = trajectory_of(optimizer, params, [huge, jnp.ones((2, 2))])[-1]
    np.testing.assert_allclose(actual[0, 0], expected)
    assert np.isnan(expected) or (actual.ravel()[1:] < 0.9).all()
    assert np.isnan(actual).all() == np.isnan(expected)


SCALE_FREE = {
    "lamb": LAMB(0.05, epsilon=0.0),
    "lars": LARS(2.0),
    "adamw": AdamW(0.05, epsilon=0.0, nesterov=True, cautious=True, update_clip=0.5),
    "adafactor": Adafactor(0.05, epsilon1=0.0),
    "adafactor-factored": Adafactor(0.05, min_dim_size_to_factor=2),
}


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e6, 1e15])
@pytest.mark.parametrize("rule", SCALE_FREE.values(), ids=SCALE_FREE)
def test_the_size_of_the_gradients_does_not_count(rule, scale):
    params, *gradients = np.random.default_rng(5).normal(size=(61, 4, 3)).astype(np.float32)
    gradients = np.array(gradients)
    expected = trajectory_of(rule, jnp.asarray(params), gradients)
    actual = trajectory_of(rule, jnp.asarray(params), gradients * np.float32(scale))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_lars_takes_gradients_whose_squares_no_float_holds(scale):
    new, _ = LARS(1.0).update(jnp.asarray([3.0, 4.0]), jnp.asarray([4.0, 3.0]) * scale, LARS().init(jnp.zeros(2)))
    np.testing.assert_allclose(new, [3 - 4e-3, 4 - 3e-3], rtol=1e-6)


@pytest.mark.parametrize("make", [LAMB, LARS])
def test_a_ratio_is_1_where_a_norm_is_0(make):
    optimizer = make(learning_rate=0.5, weight_decay=0.5)
    params = {"zero": jnp.zeros(2), "still": jnp.ones(2)}
    grads = {"zero": jnp.ones(2), "still": jnp.zeros(2)}
    new, _ = optimizer.update(params, grads, optimizer.init(params))
    np.testing.assert_allclose(new["zero"], -0.5, rtol=1e-5)
    # LAMB's ratio is of the whole step, decay included; that of LARS of the gradient.
    np.testing.assert_allclose(new["still"], 0.5 if make is LAMB else 0.75, rtol=1e-6)


LONG_MEMORIES = {
    "lamb": lambda beta: LAMB(0.01, beta1=beta, beta2=beta),
    "adamw-nesterov": lambda beta: AdamW(0.01, beta1=beta, beta2=beta, nesterov=True),
    "adafactor": lambda beta: Adafactor(0.01, beta1=beta),
}


@pytest.mark.parametrize("beta", [0.999, 1 - 1e-6])
@pytest.mark.parametrize("rule", LONG_MEMORIES)
def test_a_rule_loses_nothing_as_an_argument(rule, beta):
    gradients = jnp.asarray(np.random.default_rng(4).normal(size=(200, 4, 3)), jnp.float32)

    def train(optimizer, params):
        body = lambda carry, grad: (optimizer.update(carry[0], grad, carry[1]), None)  # noqa: E731
        return jax.lax.scan(body, (params, optimizer.init(params)), gradients)[0][0]

    optimizer, params = LONG_MEMORIES[rule](beta), jnp.ones((4, 3))
    closed = jax.jit(lambda params: train(optimizer, params))(params)
    np.testing.assert_allclose(jax.jit(train)(optimizer, params), closed, rtol=1e-6)
    assert np.isfinite(closed).all()


SHARDED = {
    "lamb": LAMB(0.05, weight_decay=0.1),
    "lars": LARS(1.0, weight_decay=0.1),
    "adamw": AdamW(0.05, cautious=True, update_clip=0.5),
    "adafactor": Adafactor(min_dim_size_to_factor=4, beta1=0.5),
    "stacked": LAMB(0.05, unit_axes=0),
}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("rule", SHARDED)
def test_norms_and_slots_of_sharded_parameters(rule, axis_type):
    """Whatever is reduced over many devices, the numbers are those of one."""
    params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(8, 16)), jnp.float32)}
    expected = trajectory_of(SHARDED[rule], params, [params] * 3)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec("data", "model")))
        actual = trajectory_of(SHARDED[rule], placed, [placed] * 3)
    np.testing.assert_allclose(actual["w"], expected["w"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("off", "on", "slot"),
    [(LARS(momentum=0.0), LARS(), "trace"), (Adafactor(beta1=0.0), Adafactor(beta1=0.5), "mu")],
    ids=["lars", "adafactor"],
)
def test_zero_keeps_no_slot(off, on, slot):
    assert getattr(off.init(jnp.ones(2)).slots, slot) is None
    assert getattr(on.init(jnp.ones(2)).slots, slot).shape == (2,)


# Bad input.


def test_bad_settings():
    with pytest.raises(ValueError, match="LARS: nesterov needs momentum > 0"):
        LARS(momentum=0.0, nesterov=True)
    with pytest.raises(TypeError, match=r"LARS: trust_mask must be a function \(path, leaf\) -> bool, got 'bias'"):
        LARS(trust_mask="bias")
    for make in (lambda: LARS(trust_coefficient=0.0), lambda: LAMB(trust_max=0.0), lambda: Adafactor(update_clip=0.0)):
        with pytest.raises(ValueError, match=r"must be a number in \(0, inf\) or a schedule, got "):
            make()
