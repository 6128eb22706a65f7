"""What the newer rules keep, refuse, and do where a gradient is zero."""

import dataclasses
import functools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_papers_modern import average_length as paper_length
from zoo import bits, specs

from mithril_opt import (
    ADOPT,
    LARS,
    AdaDelta,
    Adamax,
    Adan,
    AdEMAMix,
    Clip,
    CosineAnnealingLR,
    DecayRate,
    HalfLifeWarmup,
    Lion,
    MultiOptimizer,
    NAdam,
    RAdam,
    StepLR,
    explain,
    state_from_torch,
)
from mithril_opt.core.fields import is_static
from mithril_opt.core.pytree import with_fields
from mithril_opt.core.slots import state_bytes
from mithril_opt.optimizers.adopt import clip
from mithril_opt.optimizers.radam import average_length, rectification

# The rule with a decay that is on, its bytes of state for each real parameter, and for each leaf besides.
RULES = {
    "lion": (Lion(learning_rate=0.1, weight_decay=0.1), 4, 0),
    "nadam": (NAdam(learning_rate=0.1, weight_decay=0.1), 8, 4),
    "nadam-decoupled": (NAdam(learning_rate=0.1, weight_decay=0.1, decoupled_weight_decay=True), 8, 4),
    "radam": (RAdam(learning_rate=0.1, weight_decay=0.1), 8, 0),
    "radam-rectified": (RAdam(learning_rate=0.1, beta2=jnp.float32(0.7), weight_decay=0.1), 8, 0),
    "adamax": (Adamax(learning_rate=0.1, weight_decay=0.1), 8, 0),
    "adadelta": (AdaDelta(learning_rate=2.0, weight_decay=0.1), 8, 0),
    "ademamix": (AdEMAMix(learning_rate=0.1, beta3=HalfLifeWarmup(0.0, 0.9999, 2), weight_decay=0.1), 12, 0),
    "ademamix-fast": (AdEMAMix(learning_rate=0.1, beta1=0.0, weight_decay=0.1), 8, 0),
    "adopt": (ADOPT(learning_rate=0.1, weight_decay=0.1), 8, 4),
    "adan": (Adan(learning_rate=0.1, weight_decay=0.1), 16, 1),
}
OPTIMIZERS = {name: rule for name, (rule, *_) in RULES.items()}


@pytest.mark.parametrize("name", RULES)
def test_bytes_of_state(name):
    optimizer, each, more = RULES[name]
    params = {"a": jnp.ones((3, 5)), "b": jnp.ones(7, jnp.bfloat16), "c": jnp.float32(1)}
    assert state_bytes(optimizer, params) == [15 * each + more, 7 * each + more, each + more]
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.init(params).slots))
    assert total == 23 * each + 3 * more


# Zero gradients.


def with_and_without_epsilon(optimizer):
    return [optimizer, with_fields(optimizer, epsilon=0.0)] if hasattr(optimizer, "epsilon") else [optimizer]


@functools.partial(jax.jit, static_argnames="dtype")
def run(optimizer, gradients, dtype="float32", start=1.0):
    """One parameter and the state after gradients of these values."""
    params = jnp.full(2, start, dtype)
    state = optimizer.init(params)
    for gradient in gradients:
        params, state = optimizer.update(params, jnp.full(2, gradient, dtype), state)
    return params, state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
@pytest.mark.parametrize("name", RULES)
def test_zero_gradients_move_nothing_and_the_next_one_moves_by_what_is_finite(name, dtype):
    for optimizer in with_and_without_epsilon(with_fields(OPTIMIZERS[name], weight_decay=None)):
        still, moved = (run(optimizer, gradients, dtype) for gradients in ([0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]))
        assert specs(moved[1]) == specs(optimizer.init(jnp.ones(2, dtype)))
        assert all(np.isfinite(np.asarray(leaf, np.complex64)).all() for leaf in jax.tree.leaves((still, moved)))
        assert bits(still[0]) == bits(jnp.ones(2, dtype))
        assert np.all((moved[0].real > -2) & (moved[0].real <= 1))
        assert np.all(moved[0].real < 1) or (name == "adadelta" and optimizer.epsilon == 0)


@jax.jit
def slopes(optimizer, params, gradients):
    """Derivatives of a loss after four updates; those by integers are no numbers."""

    def loss(optimizer, params, gradients):
        new, state = params, optimizer.init(params)
        for gradient in gradients:
            new, state = optimizer.update(new, jnp.full_like(new, gradient), state)
        return jnp.sum(jnp.abs(new - 0.5))

    found = jax.grad(loss, argnums=(0, 1, 2), allow_int=True)(optimizer, params, gradients)
    return [leaf for leaf in jax.tree.leaves(found) if leaf.dtype != jax.dtypes.float0]


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("name", RULES)
def test_derivatives_are_finite_where_a_gradient_and_a_parameter_are_zero(name, dtype):
    for optimizer in with_and_without_epsilon(OPTIMIZERS[name]):
        for gradients in ([0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0], [1.0, 0.0, -1.0, 0.0]):
            assert all(np.isfinite(leaf).all() for leaf in slopes(optimizer, jnp.zeros(2, dtype), gradients))
    for gradients in ([1e-30, 0.0, 1.0, 0.0], [0.0, 1e-30, 1e-15, 1e-20]):
        assert all(np.isfinite(leaf).all() for leaf in slopes(OPTIMIZERS[name], jnp.zeros(2, dtype), gradients))


# Huge gradients.


def run_huge(optimizer, times):
    """Update by update, or XLA would make |g| of √g²."""
    params, grads = jnp.ones(2), jnp.full(2, 1e20)
    state = optimizer.init(params)
    for _ in range(times):
        params, state = optimizer.update(params, grads, state)
    return params, state


@pytest.mark.parametrize("name", [name for name in RULES if not name.startswith("radam")])
def test_gradients_whose_squares_overflow(name):
    """As the docstrings say: rules that square nothing move on; with an infinite second moment nothing moves."""
    params, state = run_huge(with_fields(OPTIMIZERS[name], weight_decay=None), 12)
    np.testing.assert_allclose(params, 1 - {"lion": 1.2, "adamax": 1.2}.get(name, 0.0), rtol=1e-5)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(state))


def test_squares_that_overflow_in_radam_stop_it_once_it_is_rectified():
    plain, later = (run_huge(RAdam(learning_rate=0.1), times)[0] for times in (5, 12))
    np.testing.assert_allclose(plain, -5e19, rtol=1e-6)
    assert bits(later) == bits(plain)


def test_a_huge_gradient_after_zeros_moves_adopt_by_its_bound():
    for gradient in (1e17, 1e35, 3e38):
        np.testing.assert_allclose(run(ADOPT(learning_rate=1.0, beta1=0.0), [0.0, gradient])[0], 0.0, atol=1e-6)


# Bad input.

MOMENTS = dict(learning_rate=-1e-3, beta1=1.0, beta2=-0.1, epsilon=-1e-8, weight_decay=-1.0)
BAD = {
    "lion": (Lion, dict(learning_rate=-1e-4, beta1=1.0, beta2=-0.1, weight_decay=-1.0)),
    "nadam": (NAdam, dict(MOMENTS, momentum_decay=-0.1)),
    "radam": (RAdam, dict(MOMENTS, beta2=2 / 3)),
    "adamax": (Adamax, MOMENTS),
    "adadelta": (AdaDelta, dict(learning_rate=-1.0, rho=1.0, epsilon=-1e-6, weight_decay=-1.0)),
    "ademamix": (AdEMAMix, dict(MOMENTS, beta3=1.0, alpha=-1.0)),
    "adopt": (ADOPT, MOMENTS),
    "adan": (Adan, dict(MOMENTS, beta3=1.0)),
    "half-life": (
        lambda **given: HalfLifeWarmup(**dict(start=0.9, end=0.9, steps=1) | given),
        dict(start=1.0, end=-0.1, steps=-1),
    ),
}


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, (_, fields) in BAD.items() for field in fields])
def test_numbers_out_of_range(name, field):
    rule, fields = BAD[name]
    with pytest.raises(ValueError, match=rf"^\w+: {field} must be .*, got {fields[field]}"):
        rule(**{field: fields[field]})


@pytest.mark.parametrize("rule", [NAdam, RAdam, Adamax, AdaDelta])
def test_decay_that_is_coupled_unless_said_otherwise(rule):
    with pytest.raises(TypeError, match="decoupled_weight_decay must be True or False, got 1"):
        rule(decoupled_weight_decay=1)


def test_a_second_moment_that_radam_would_never_use():
    with pytest.raises(ValueError, match=r"RAdam: beta2 must be a number in \(0.666667, 1\) or a schedule, got 0.5"):
        RAdam(beta2=0.5)
    for beta2 in (0.0, 1e-6, 0.01, 0.3, 0.6):
        for t in (1, 2, 6, 1000, 2**31 - 1):
            assert not rectification(DecayRate(jnp.float32(beta2)), jnp.float32(t))[0]


def test_the_rectification_of_radam_has_finite_derivatives():
    slope = jax.jit(jax.grad(lambda beta2, t: rectification(DecayRate(beta2), t)[1] + average_length(DecayRate(beta2), t)))
    for beta2 in (0.0, 0.5, 0.7, 0.999):
        assert all(np.isfinite(slope(beta2, jnp.float32(t))) for t in (1, 5, 6, 1000, 2**31 - 1))


# What explain says.


def test_a_rate_that_is_adams():
    params, schedule = {"w": jnp.ones((4, 4))}, StepLR(1e-3, step_size=10)
    text = "warning: {}a rate of 0.001 is one for Adam; Lion moves every element by all of it and needs a smaller one"
    assert text.format("") in explain(Clip(Lion(learning_rate=schedule), clip_norm=1.0), params, 100).footer
    groups = MultiOptimizer({"all": Lion(learning_rate=schedule)}, groups={"all": ...})
    assert explain(groups, params, 100).footer[1:] == (text.format("group 'all': "),)
    text = "warning: a rate of 0.001 is one for Adam; AdaDelta's is a factor of its steps, about 1"
    assert explain(AdaDelta(learning_rate=schedule), params, 100).footer[1:] == (text,)
    assert all(len(explain(optimizer, params, 100).footer) == 2 for optimizer in (Lion(1e-3), AdaDelta(1e-2)))
    sound = [Lion(), Lion(learning_rate=CosineAnnealingLR(9e-4, T_max=100)), AdaDelta(), AdaDelta(learning_rate=0.1)]
    assert all(len(explain(optimizer, params, 100).footer) == 1 for optimizer in sound)


def test_an_epsilon_that_drowns_the_gradients_of_adamax():
    params = {"w": jnp.ones((4, 4))}
    text = "warning: an epsilon of 0.001 is added to every |g|; gradients of that size and below it hardly move anything"
    assert explain(Adamax(epsilon=1e-3), params, 100).footer[1:] == (text,)
    assert len(explain(Adamax(epsilon=9e-4), params, 100).footer) == 1


def test_ademamix_with_the_largest_gradients():
    """α m₂ is no float32 there; what is divided first is."""
    optimizer, params = AdEMAMix(beta3=0.9, alpha=8.0), jnp.ones(2)
    state = optimizer.init(params)
    for _ in range(20):
        params, state = optimizer.update(params, jnp.array([1e38, -1e38]), state)
    assert np.isfinite(params).all()


def test_lars_stays_where_it_is_below_the_largest_gradients():
    optimizer, params = LARS(learning_rate=1.0, momentum=0.0), jnp.ones(100)
    large, ordinary = (optimizer.update(params, jnp.full(100, g), optimizer.init(params))[0] for g in (1e38, 1e30))
    np.testing.assert_allclose(ordinary, 0.999, rtol=1e-6)
    np.testing.assert_array_equal(large, params)


@pytest.mark.parametrize("rule", [NAdam, RAdam])
@pytest.mark.parametrize("decoupled", [False, True])
def test_moments_from_pytorch_that_saw_the_other_decay(rule, decoupled):
    slots = {"exp_avg": np.ones(2, "f4"), "exp_avg_sq": np.ones(2, "f4"), "mu_product": np.float32(0.4), "step": 3.0}
    group = {"betas": (0.9, 0.999), "momentum_decay": 0.004, "decoupled_weight_decay": decoupled, "params": [0]}
    if rule is RAdam:
        del slots["mu_product"], group["momentum_decay"]
    saved, params = {"state": {0: slots}, "param_groups": [group]}, {"w": jnp.zeros(2)}
    own, other = (rule(weight_decay=0.1, decoupled_weight_decay=flag) for flag in (decoupled, not decoupled))
    assert state_from_torch(own, params, saved, names=["w"]).step == 3
    with pytest.raises(ValueError, match=rf"a parameter group has {{'decoupled_weight_decay': {decoupled}}}"):
        state_from_torch(other, params, saved, names=["w"])


@pytest.mark.parametrize("name", RULES)
def test_a_step_is_about_the_rate(name):
    """After 400 updates, whatever the size of the gradients; AdaDelta's is not."""
    optimizer = with_fields(OPTIMIZERS[name], learning_rate=1e-2, weight_decay=None)
    params, grads = jnp.zeros(3), jnp.asarray([1e-3, 1.0, 300.0])
    body = lambda carry, _: (optimizer.update(carry[0], grads, carry[1]), carry[0])  # noqa: E731
    (params, _), before = jax.lax.scan(body, (params, optimizer.init(params)), length=400)
    ratios = np.asarray((before[-1] - params) / 1e-2)
    assert np.all((ratios > 0.4) & (ratios < 2.5)) == optimizer.unit_steps


NEAR_ONE = [
    lambda beta: NAdam(0.01, beta1=beta, beta2=beta),
    lambda beta: RAdam(0.01, beta2=beta),
    lambda beta: AdEMAMix(0.01, beta2=beta, beta3=beta),
    lambda beta: ADOPT(0.01, beta1=beta, beta2=beta),
    lambda beta: Adan(0.01, beta1=beta, beta2=beta, beta3=beta),
    lambda beta: Lion(0.01, beta1=beta, beta2=beta),
    lambda beta: Adamax(0.01, beta1=beta, beta2=beta),
    lambda beta: AdaDelta(0.01, rho=beta),
    lambda beta: AdEMAMix(0.01, beta3=HalfLifeWarmup(0.9, beta, 100)),
]


@pytest.mark.parametrize("beta", [0.999, 1 - 1e-6])
@pytest.mark.parametrize("make", NEAR_ONE)
def test_a_decay_rate_loses_nothing_as_an_argument(make, beta):
    def train(optimizer, params):
        body = lambda carry, _: (optimizer.update(carry[0], jnp.cos(carry[0]), carry[1]), None)  # noqa: E731
        return jax.lax.scan(body, (params, optimizer.init(params)), length=200)[0]

    params = jnp.asarray([0.5, -2.0, 3.0])
    argument, closed = jax.jit(train)(make(beta), params), jax.jit(functools.partial(train, make(beta)))(params)
    for a, b in zip(jax.tree.leaves(argument), jax.tree.leaves(closed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("make", NEAR_ONE)
def test_a_decay_rate_that_is_one_in_float32_stays_finite(make):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(make(1 - 1e-8), [1.0, -2.0, 0.0, 3.0] * 3)))


NUMBERS = [
    (rule, field.name)
    for rule in (Lion, NAdam, RAdam, Adamax, AdaDelta, AdEMAMix, ADOPT, Adan)
    for field in dataclasses.fields(rule)
    if not is_static(field)
]


@pytest.mark.parametrize(("rule", "field"), NUMBERS)
def test_any_number_may_be_a_schedule_and_acts_at_its_step(rule, field):
    """It is what the same number is that is set before each update."""
    values, given = jnp.asarray([0.75, 0.875, 0.6875, 0.75]), {"learning_rate": 0.5, "weight_decay": 0.5}
    scheduled = rule(**given | {field: lambda step: values[step]})
    params = set_by_hand = jnp.asarray([1.0, -2.0])
    state = same_state = scheduled.init(params)
    for value, scale in zip(values, (1.0, 3.0, -2.0, 0.5), strict=True):
        grad = scale * jnp.asarray([1.0, -0.5])
        params, state = scheduled.update(params, grad, state)
        set_by_hand, same_state = rule(**given | {field: value}).update(set_by_hand, grad, same_state)
        np.testing.assert_allclose(params, set_by_hand, rtol=2e-6, atol=1e-7)


# What single rules do.


def test_radams_average_length_has_its_digits_from_the_first_update_on():
    updates = [1, 2, 5, 6, 10, 100, 342, 1000, 1635, 11565, 10**6, 2**31 - 1]
    for beta2 in (0.67, 0.9, 0.99, 0.999, 0.9999, 0.99999, 1 - 1e-6, 1 - 1e-8):
        exact = [paper_length(beta2, t)[0] for t in updates]
        actual = jax.jit(average_length)(DecayRate(beta2), jnp.asarray(updates, jnp.float32))
        np.testing.assert_allclose(actual, exact, rtol=3e-7)
        with jax.enable_x64(True):
            np.testing.assert_allclose(average_length(DecayRate(beta2), jnp.asarray(updates, jnp.float64)), exact, rtol=1e-14)


def test_the_clipping_bounds_adopts_step_after_a_gradient_of_zero():
    optimizer = ADOPT(learning_rate=1.0, beta1=0.5, beta2=0.0)
    for gradients, moved in (([0, 1], 0.5), ([0, 0, -1], -0.5 * 2**0.25), ([0, 1, 1], 0.75 + 0.5)):
        np.testing.assert_allclose(run(optimizer, [float(g) for g in gradients], start=0.0)[0], -moved, rtol=1e-6)


def test_the_clipping_of_a_complex_number_turns_with_it():
    turned, slope = jax.jvp(lambda angle: clip(3 * jnp.exp(1j * angle), 2.0), (0.0,), (1.0,))
    np.testing.assert_allclose([turned, slope], [2, 2j], atol=1e-6)


def test_adopts_count_of_gradients_saturates():
    state = ADOPT().init(jnp.ones(2))
    state = state._replace(slots=state.slots._replace(seen=jnp.int32(2**31 - 1)))
    assert ADOPT().update(jnp.ones(2), jnp.ones(2), state)[1].slots.seen == 2**31 - 1


def test_a_leaf_begins_with_its_first_gradient_in_adopt():
    params, optimizer = {"early": jnp.ones(2), "late": jnp.ones(2)}, ADOPT(learning_rate=0.1)
    state, alone = optimizer.init(params), (jnp.ones(2), optimizer.init(jnp.ones(2)))
    params, state = optimizer.update(params, {"early": jnp.ones(2), "late": None}, state)
    for scale in (1.0, 3.0, -2.0):
        gradient = scale * jnp.asarray([0.5, 2.0])
        params, state = optimizer.update(params, {"early": gradient, "late": gradient}, state)
        alone = optimizer.update(alone[0], gradient, alone[1])
        np.testing.assert_allclose(params["late"], alone[0], rtol=1e-6)
    assert np.any(params["early"] != params["late"])
    assert state.slots.seen == {"early": 4, "late": 3}


def test_a_leaf_begins_without_a_difference_in_adan():
    params, optimizer = {"early": jnp.ones(2), "late": jnp.ones(2)}, Adan(beta2=0.5, beta3=0.5)
    _, state = optimizer.update(params, {"early": jnp.ones(2), "late": None}, optimizer.init(params))
    assert [bool(state.slots.started[name]) for name in params] == [True, False]
    _, state = optimizer.update(params, {"early": 3 * jnp.ones(2), "late": 3 * jnp.ones(2)}, state)
    np.testing.assert_allclose(state.slots.delta["early"], 0.5 * 2)
    np.testing.assert_allclose(state.slots.nu["early"], 0.5 * (0.5 * 1 + (3 + 0.5 * 2) ** 2))
    np.testing.assert_array_equal(state.slots.delta["late"], 0)
    np.testing.assert_allclose(state.slots.nu["late"], 0.5 * 3**2)


# The warm-up of a decay rate.


def exact_complement(start, end, length, step):
    """1 − β in 40 digits, from what float64 knows of both rates."""
    with localcontext(prec=40):
        x = min(Decimal(1), Decimal(step + 1) / length) if length else Decimal(1)
        parts = [weight / Decimal(rate).ln() for weight, rate in ((1 - x, start), (x, end)) if rate]
        return float(1 - (1 / sum(parts)).exp()) if any(parts) else 1.0


WARMUPS = [(0.9, 0.9999, 1000), (0.5, 1 - 1e-6, 2**31 - 1), (0.0, 0.9, 7), (0.9, 0.0, 10), (0.9999, 0.5, 100), (0.9, 0.999, 0)]


@pytest.mark.parametrize(("start", "end", "length"), WARMUPS)
def test_a_warm_up_of_a_decay_rate_is_exact_near_one(start, end, length):
    schedule = HalfLifeWarmup(start, end, length)
    jitted = jax.jit(lambda schedule, step: schedule.read_decay_rate(None, step).complement)
    for step in (0, 1, 2, 9, 10, 99, 998, 999, 1000, 10**6, 2**31 - 1):
        expected = exact_complement(start, end, length, step)
        assert float(jitted(schedule, jnp.int32(step))) == pytest.approx(expected, rel=4e-7)
        assert float(schedule(step)) == pytest.approx(1 - expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("argument", [False, True])
def test_a_rule_gets_the_complement_of_a_decay_rate_that_warms_up(argument):
    optimizer, grads = AdEMAMix(beta3=HalfLifeWarmup(0.9, 0.9999, 3)), jnp.asarray([1e-3, 1.0, 300.0])
    update = jax.jit(lambda optimizer, *args: optimizer.update(*args)) if argument else lambda _, *args: optimizer.update(*args)
    for step in (1, 2, 50):
        state = optimizer.init(grads)._replace(step=jnp.int32(step))
        slow = update(optimizer, grads, grads, state)[1].slots.slow
        np.testing.assert_allclose(slow, exact_complement(0.9, 0.9999, 3, step) * np.float64(grads), rtol=4e-7)


def test_a_warm_up_of_a_decay_rate_is_a_line_of_half_lives():
    rates = np.float64(HalfLifeWarmup(0.5, 0.9, steps=4)(np.arange(6)))
    h = np.log(0.5) / np.log(rates)
    np.testing.assert_allclose(np.diff(h, prepend=1.0), [1.3947] * 4 + [0] * 2, atol=1e-4)


def test_the_rate_of_a_warm_up_has_finite_derivatives():
    @functools.partial(jax.jit, static_argnums=2)
    @jax.grad
    def slope(rates, step, length):
        return HalfLifeWarmup(*rates, length).read_decay_rate(None, step).complement

    for start, end, length in WARMUPS:
        for step in (0, 3, 10**6):
            assert np.isfinite(slope((start, end), jnp.int32(step), length)).all()
