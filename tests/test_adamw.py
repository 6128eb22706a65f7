"""AdamW's variants, beside what test_papers_factored.py says of their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import primitives

from mithril_opt import AdamW, LeafOptimizer, decay_rate, ema, number, pytree
from mithril_opt.core.numerics import safe_divide, safe_sqrt


@pytree
class PlainAdamW(LeafOptimizer):
    """What a user would write from the paper."""

    learning_rate: float = number(default=0.001)
    beta1: float = decay_rate(default=0.9)
    beta2: float = decay_rate(default=0.999)
    epsilon: float = number(default=1e-8)
    weight_decay: float = number(default=0.01)

    def init_leaf(self, param):
        return AdamW().init_leaf(param)

    def update_leaf(self, param, grad, slots, t):
        m, v = ema(self.beta1, slots.mu, grad), ema(self.beta2, slots.nu, grad * grad)
        m_hat, v_hat = m / self.beta1.one_minus_power(t), v / self.beta2.one_minus_power(t)
        direction = safe_divide(m_hat, safe_sqrt(v_hat) + self.epsilon) + self.weight_decay * param
        return self.learning_rate * direction, slots._replace(mu=m, nu=v)


def test_flags_that_are_off_cost_nothing():
    """The program is to the letter that of the plain rule."""
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    program = lambda rule: jax.jit(rule.update).lower(params, params, rule.init(params)).as_text()  # noqa: E731
    assert program(AdamW()) == program(PlainAdamW())
    for flag in ("nesterov", "cautious", "cautious_decay", "amsgrad"):
        assert program(AdamW(**{flag: True})) != program(PlainAdamW())


def test_a_masked_decay_leaves_nothing_of_its_flags():
    params, nowhere = jnp.ones((3, 2)), lambda path, leaf: False
    count = lambda rule: primitives(jax.make_jaxpr(rule.update)(params, params, rule.init(params)))  # noqa: E731
    flags = AdamW(decay_mask=nowhere, cautious_decay=True, decay="full", max_learning_rate=0.5)
    assert count(flags) == count(AdamW(weight_decay=0.0))


@pytest.mark.parametrize("size", [1e-9, 1e-35])
@pytest.mark.parametrize("aligned", [1, 3, 1000])
def test_a_cautious_step_is_enlarged_by_the_share_that_is_left(aligned, size):
    """But not beyond a thousandfold: one element of 2000 is less than 10⁻³. And however small the gradients are."""
    optimizer, params = AdamW(1.0, cautious=True, weight_decay=0.0, epsilon=0.0), jnp.zeros(2000)
    state = optimizer.init(params)
    slots = state.slots._replace(mu=jnp.full(2000, -1e-5), nu=jnp.full(2000, 1e-10))
    state = state._replace(slots=slots, step=jnp.int32(10**6))
    grads = jnp.where(jnp.arange(2000) < aligned, -size, size)
    new, _ = optimizer.update(params, grads, state)
    np.testing.assert_allclose(new[:aligned], 0.9 * 1 / max(aligned / 2000, 1e-3), rtol=2e-3)
    np.testing.assert_array_equal(new[aligned:], 0)


def test_cautious_steps_hide_no_nan():
    params = jnp.ones(3)
    optimizer = AdamW(cautious=True)
    new, _ = optimizer.update(params, jnp.asarray([jnp.nan, 1.0, 1.0]), optimizer.init(params))
    assert np.isnan(new).tolist() == [True, False, False]


@pytest.mark.parametrize("grad", [1e-30, 1e-18, 1e15])
def test_the_bound_on_updates_at_extreme_gradients(grad):
    """After 1000 gradients of 1, one of another size: √v̂ is about 1, so that ρ is about the new one's size."""
    optimizer = AdamW(1.0, update_clip=1.0, weight_decay=0.0)
    state = optimizer.init(jnp.zeros(4))
    state = state._replace(slots=state.slots._replace(nu=jnp.ones(4)), step=jnp.int32(10**7))
    new, _ = optimizer.update(jnp.zeros(4), jnp.full(4, grad), state)
    v = 0.999 + 0.001 * grad**2
    rho = grad / np.sqrt(v)
    np.testing.assert_allclose(new, -0.1 * grad / np.sqrt(v) / max(1, rho), rtol=1e-5)


# Bad input.


@pytest.mark.parametrize("decay", ["Full", "", None, True])
def test_decays_that_do_not_exist(decay):
    with pytest.raises(ValueError, match='AdamW: decay must be "rate", "full" or "corrected", got '):
        AdamW(decay=decay)


def test_the_largest_rate_goes_with_the_decays_that_need_it():
    for decay in ("full", "corrected"):
        with pytest.raises(ValueError, match=f'AdamW: decay="{decay}" needs max_learning_rate, got None'):
            AdamW(decay=decay)
    with pytest.raises(ValueError, match=r'AdamW: decay="rate" has no use for max_learning_rate, got 0.1'):
        AdamW(max_learning_rate=0.1)
    with pytest.raises(ValueError, match=r"AdamW: max_learning_rate must be a number in \(0, inf\)"):
        AdamW(decay="full", max_learning_rate=0.0)
