"""The contract of rules: the leaf's view, slots that a leaf lacks, sums over the tree, numbers that a jit boundary keeps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import RULES, bits, make_params, specs

from mithril_opt import (
    SGD,
    Accumulate,
    Adam,
    AdamW,
    CosineAnnealingLR,
    DecayRate,
    ExponentialLR,
    LeafOptimizer,
    MultiOptimizer,
    ReduceLROnPlateau,
    RMSProp,
    StepLR,
    abs_sq,
    decay_rate,
    ema,
    from_state_dict,
    number,
    pytree,
    real_zeros,
    static,
    to_state_dict,
    zeros,
)
from mithril_opt.core.pytree import with_fields
from mithril_opt.core.updates import plain

PARAMS = {"big": jnp.ones((4, 3)), "small": jnp.ones(3), "scalar": jnp.float32(2.0)}


class MixedSlots(NamedTuple):
    row: jax.Array | None
    col: jax.Array | None
    nu: jax.Array | None


@pytree
class Mixed(LeafOptimizer):
    """A factored second moment for matrices, a whole one for vectors, none for scalars; scalars are refused as rank 0."""

    learning_rate: float = number(default=0.1, minimum=0)
    beta: float = decay_rate(default=0.5)

    def init_leaf(self, param):
        assert param.shape != (), "never probed with a scalar"
        if param.ndim == 2:
            return MixedSlots(jnp.zeros(param.shape[:1]), jnp.zeros(param.shape[1:]), None)
        return MixedSlots(None, None, real_zeros(param))

    def update_leaf(self, param, grad, slots, t):
        square = abs_sq(grad)
        if slots.nu is None:
            row, col = ema(self.beta, slots.row, square.mean(1)), ema(self.beta, slots.col, square.mean(0))
            return self.learning_rate * grad, MixedSlots(row, col, None)
        return self.learning_rate * grad, MixedSlots(None, None, ema(self.beta, slots.nu, square))


def test_a_leaf_may_lack_a_slot_or_hold_one_of_another_shape():
    optimizer, params = Mixed(), {"m": jnp.ones((4, 3)), "v": jnp.ones(3)}
    state = optimizer.init(params)
    assert (state.slots.row["m"].shape, state.slots.col["m"].shape, state.slots.nu["v"].shape) == ((4,), (3,), (3,))
    assert state.slots.row["v"] is state.slots.nu["m"] is None
    new, after = jax.jit(optimizer.update)(params, params, state)
    assert specs(after) == specs(state)
    np.testing.assert_allclose(after.slots.nu["v"], 0.5)
    np.testing.assert_allclose(after.slots.col["m"], 0.5)
    restored = from_state_dict(jax.eval_shape(optimizer.init, params), to_state_dict(after))
    assert bits(optimizer.update(new, params, restored)) == bits(optimizer.update(new, params, after))


def test_a_slot_that_no_leaf_has_is_none():
    state = Mixed().init({"v": jnp.ones(3)})
    assert state.slots.row is None
    assert specs(Mixed().update({"v": jnp.ones(3)}, {"v": jnp.ones(3)}, state)[1]) == specs(state)


def test_a_state_in_which_other_leaves_have_the_slots():
    optimizer = Mixed()
    state = optimizer.init({"a": jnp.ones((4, 3)), "b": jnp.ones(3)})
    params = {"a": jnp.ones(3), "b": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match=r"at 'a': the state does not belong .*row='float32\[4\]'.*nu='float32\[3\]'"):
        optimizer.update(params, params, state)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (lambda slots: None, r"returned the slots None, but the state holds .*nu='float32\[3\]'"),
        (lambda slots: slots._replace(nu=slots.nu[:1]), r".*nu='float32\[1\]'.*but the state holds .*nu='float32\[3\]'"),
        (lambda slots: slots._replace(nu=slots.nu + 1j), r".*nu='complex64\[3\]'"),
        (lambda slots: slots._replace(row=slots.nu), r".*row='float32\[3\]'"),
    ],
)
def test_slots_of_another_layout_from_a_rule(new, message):
    class Changing(Mixed):
        def update_leaf(self, param, grad, slots, t):
            return grad, new(slots)

    optimizer, params = pytree(Changing)(), {"v": jnp.ones(3)}
    with pytest.raises(ValueError, match=rf"at 'v': Changing.update_leaf {message}"):
        optimizer.update(params, params, optimizer.init(params))


def test_a_complex_step_of_a_real_parameter():
    @pytree
    class Turning(LeafOptimizer):
        learning_rate: float = 0.1

        def init_leaf(self, param):
            return None

        def update_leaf(self, param, grad, slots, t):
            return 1j * grad, slots

    with pytest.raises(
        ValueError, match=r"at 'w': Turning.update_leaf returned the step complex64\[2\] for a parameter float32"
    ):
        Turning().update({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, Turning().init({"w": jnp.ones(2)}))


class MaskedRule(LeafOptimizer):
    learning_rate: float = number(default=1.0, minimum=0)
    shrink: float = number(default=0.5, minimum=0, masked=True)
    decay_mask: object = static(default=None)

    def init_leaf(self, param):
        return None

    def update_leaf(self, param, grad, slots, t):
        return grad if self.shrink is None else grad + self.shrink * param, slots


def test_the_mask_switches_off_what_is_declared_as_decay_whatever_its_name():
    optimizer = pytree(MaskedRule)(decay_mask=lambda path, leaf: path == "big")
    new, _ = optimizer.update(PARAMS, jax.tree.map(jnp.zeros_like, PARAMS), optimizer.init(PARAMS))
    np.testing.assert_allclose(new["big"], 0.5)
    np.testing.assert_allclose(new["small"], 1.0)


def test_a_mask_without_anything_to_switch_off():
    @pytree
    class Plain(LeafOptimizer):
        learning_rate: float = 0.1
        weight_decay: float = 0.1
        decay_mask: object = static(default=None)

        def init_leaf(self, param):
            return None

        def update_leaf(self, param, grad, slots, t):
            return self.weight_decay * param, slots

    Plain()
    with pytest.raises(
        TypeError, match=r"Plain: decay_mask has nothing to switch off; declare the decay as number\(..., masked="
    ):
        Plain(decay_mask=lambda path, leaf: True)


def twice(optimizer, grads):
    """Parameters of ones after two updates; the first of `ADOPT` moves nothing."""
    ones = jax.tree.map(jnp.ones_like, grads)
    params, state = optimizer.update(ones, grads, optimizer.init(ones))
    return optimizer.update(params, grads, state)[0]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_with_decay_takes_the_mask(rule):
    make = lambda decay: rule(weight_decay=decay, decay_mask=lambda path, leaf: path == "big")  # noqa: E731
    grads = {"big": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "small": jnp.ones((1, 3))}  # matrices: some rules take no others
    masked, none = (twice(make(decay), grads) for decay in (10.0, 0.0))
    assert bits(masked["small"]) == bits(none["small"])
    assert bits(masked["big"]) != bits(none["big"])


def test_a_rule_may_see_each_leaf_differently():
    class Graded(MaskedRule):
        def for_leaf(self, path, param):
            rule = super().for_leaf(path, param)
            return with_fields(rule, shrink=0.25) if path == "small" else rule

    optimizer = pytree(Graded)(decay_mask=lambda path, leaf: path != "scalar")
    new, _ = optimizer.update(PARAMS, jax.tree.map(jnp.zeros_like, PARAMS), optimizer.init(PARAMS))
    assert [float(new[name].ravel()[0]) for name in ("big", "small", "scalar")] == [0.5, 0.75, 2.0]


def test_a_slot_in_bfloat16_is_computed_in_float32_and_kept_in_bfloat16():
    seen = []

    @pytree
    class Half(LeafOptimizer):
        learning_rate: float = 0.5

        def init_leaf(self, param):
            return jnp.zeros(param.shape, jnp.bfloat16)

        def update_leaf(self, param, grad, slots, t):
            seen.append(slots.dtype)
            return self.learning_rate * grad, slots + grad

    optimizer, params = Half(), jnp.ones(3, jnp.float16)
    params, state = optimizer.update(params, params, optimizer.init(params))
    assert (seen, state.slots.dtype, params.dtype) == ([jnp.float32], jnp.bfloat16, jnp.float16)


def test_a_decay_rate_that_a_leaf_changes_is_corrected_with_its_own_power():
    @pytree
    class Quick(Adam):
        def for_leaf(self, path, param):
            rule = super().for_leaf(path, param)
            return with_fields(rule, beta2=DecayRate(0.5)) if path == "small" else rule

    grads, optimizer = jax.tree.map(jnp.ones_like, PARAMS), Quick(learning_rate=0.1)
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(2):
        params, state = optimizer.update(params, grads, state)
    for name in PARAMS:  # a constant gradient: m̂ / √v̂ is 1
        np.testing.assert_allclose(params[name], PARAMS[name] - 0.2, rtol=1e-5)


@pytest.mark.parametrize("field", ["learning_rate", "beta1", "epsilon", "weight_decay"])
def test_a_number_is_a_scalar(field):
    optimizer = AdamW(**{field: jnp.array([0.1, 0.2, 0.3])})
    with pytest.raises(ValueError, match=rf"AdamW: {field} must be a scalar, got shape \(3,\); jax.vmap over the optimizer"):
        optimizer.update(PARAMS, PARAMS, AdamW().init(PARAMS))


def test_an_update_with_its_parameter_cannot_be_changed_unawares():
    optimizer = Accumulate(SGD(learning_rate=1.0), every=1)
    updates, _ = optimizer.compute_updates(PARAMS, PARAMS, optimizer.init(PARAMS))
    with pytest.raises(TypeError):
        jax.tree.map(lambda update: 2 * update, updates)
    doubled = jax.tree.map(lambda update: 2 * update, plain(updates))
    np.testing.assert_array_equal(doubled["big"], -2 * PARAMS["big"])


def test_python_numbers_reach_masks_and_patterns_as_arrays():
    params = {"a": 1.0, "w": jnp.ones((2, 2))}
    masked = AdamW(weight_decay=0.5, decay_mask=lambda path, leaf: leaf.ndim > 1)
    new, _ = masked.update(params, params, masked.init(params))
    assert new["a"].shape == ()
    groups = MultiOptimizer({"small": SGD(), "rest": SGD()}, {"small": lambda path, leaf: leaf.ndim == 0, "rest": ...})
    groups.update(params, params, groups.init(params))


def test_a_metric_without_a_schedule_that_follows_it():
    state = SGD(ReduceLROnPlateau(0.1)).init(PARAMS)
    assert SGD(0.1).observe(state, 1.0) is state


def test_dampening_keeps_its_complement():
    """1 − τ to the last digit, although τ crosses a jit boundary."""
    optimizer, params = SGD(learning_rate=1.0, momentum=0.5, dampening=0.999999), jnp.zeros(1)
    state = optimizer.init(params)
    for grad in (0.0, 1.0):
        params, state = optimizer.update(params, jnp.full(1, grad), state)
    np.testing.assert_allclose(params, -(1 - 0.999999), rtol=1e-6)


class KeySlots(NamedTuple):
    key: jax.Array


def test_a_random_key_in_the_slots_tells_leaves_apart():
    @pytree
    class Noise(LeafOptimizer):
        learning_rate: float = 1.0
        salt: int = static(default=0)

        def for_leaf(self, path, param):
            return with_fields(self, salt=len(path))

        def init_leaf(self, param):
            return KeySlots(jax.random.key(self.salt))

        def update_leaf(self, param, grad, slots, t):
            key, own = jax.random.split(slots.key)
            return self.learning_rate * jax.random.normal(own, param.shape), KeySlots(key)

    params = {"a": jnp.zeros(3), "bb": jnp.zeros(3)}
    state = Noise().init(params)
    first, state = Noise().update(params, params, state)
    second, _ = Noise().update(params, params, state)
    assert len({bits(tree[name])[0] for tree in (first, second) for name in params}) == 4


class Total(NamedTuple):
    total: jax.Array


@pytree
class SharedRule(LeafOptimizer):
    """p ← p − η g / Σ|g| over the tree and all updates so far."""

    learning_rate: float = number(default=1.0, minimum=0)

    def init_leaf(self, param):
        return None

    def init_shared(self, params):
        return Total(jnp.zeros((), jnp.float32))

    def share(self, rules, params, grads, slots, shared, t):
        assert len(rules) == len(params) == len(grads) == len(slots)
        new = Total(sum((jnp.sum(jnp.abs(grad)) for grad in grads), start=shared.total))
        return new, [new] * len(grads)

    def update_leaf(self, param, grad, slots, t, shared):
        return self.learning_rate * grad / shared.total, slots


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sum_over_the_tree(dtype):
    optimizer = SharedRule()
    params = {"a": jnp.zeros(2, dtype), "b": jnp.zeros((), dtype), "c": jnp.zeros(3, dtype)}
    grads = {"a": jnp.full(2, 2.0, dtype), "b": jnp.asarray(-4.0, dtype), "c": None}
    state = optimizer.init(params)
    for total in (8, 16):
        new, state = jax.jit(optimizer.update)(params, grads, state)
        assert float(state.shared.total) == total
        np.testing.assert_array_equal(np.asarray(new["a"], np.float32), -2.0 / total)
    assert float(optimizer.update(params, dict.fromkeys(params), state)[1].shared.total) == 16
    assert {"shared/total", "step"} <= set(to_state_dict(state))


@pytree
class Ranked(LeafOptimizer):
    """p ← p − η n, with n the place of the leaf among those that have a gradient, by their size, counted from `first`."""

    learning_rate: float = number(default=1.0, minimum=0)
    first: int = static(default=0)

    def for_leaf(self, path, param):
        return with_fields(self, first=100) if path == "c" else self

    def init_leaf(self, param):
        return KeySlots(jnp.zeros((), jnp.int32))

    def share(self, rules, params, grads, slots, shared, t):
        assert shared is None
        assert t.dtype == jnp.float32
        assert all(leaf.dtype == jnp.float32 for leaf in (*params, *grads))
        sizes = jnp.asarray([jnp.max(jnp.abs(grad)) for grad in grads])
        return shared, [rule.first + jnp.sum(sizes < size) + t for rule, size in zip(rules, sizes, strict=True)]

    def update_leaf(self, param, grad, slots, t, rank):
        return jnp.full_like(param, self.learning_rate * rank), KeySlots(slots.key + 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rule_may_give_something_to_each_leaf(dtype):
    optimizer = Ranked()
    params = {"a": jnp.zeros(2, dtype), "b": jnp.zeros((), dtype), "c": jnp.zeros(2, dtype), "d": jnp.zeros(2, dtype)}
    grads = {"a": jnp.full(2, 3.0), "b": None, "c": jnp.full(2, 2.0), "d": jnp.ones(2)}
    new, state = jax.jit(optimizer.update)(params, grads, optimizer.init(params))
    assert [float(leaf.ravel()[0]) for leaf in jax.tree.leaves(new)] == [-3.0, 0.0, -102.0, -1.0]
    assert [int(count) for count in jax.tree.leaves(state.slots.key)] == [1, 0, 1, 1]
    nothing, _ = optimizer.update(params, dict.fromkeys(params), state)
    assert bits(nothing) == bits(params)


def test_slots_of_another_leaf_are_told_before_they_are_shared():
    state = Ranked().init({"a": jnp.zeros(2)})
    state = state._replace(slots=KeySlots({"a": jnp.zeros(3, jnp.int32)}))
    with pytest.raises(ValueError, match="at 'a': the state does not belong to this optimizer"):
        Ranked().update({"a": jnp.zeros(2)}, {"a": jnp.zeros(2)}, state)


# Numbers that a jit boundary keeps.

CONSTANT = [1 - 1e-2, 0.999, 0.99999, 1 - 1e-6, 1 - 1e-8]


def trained(optimizer, steps, argument):
    """Parameters after `steps` updates, the optimizer an argument of jit or closed over."""
    params = make_params()
    grads = make_params(seed=1)

    def run(optimizer, params):
        body = lambda carry, _: (optimizer.update(carry[0], grads, carry[1]), None)  # noqa: E731
        return jax.lax.scan(body, (params, optimizer.init(params)), length=steps)[0]

    return jax.jit(run)(optimizer, params) if argument else jax.jit(lambda params: run(optimizer, params))(params)


@pytest.mark.parametrize("beta", CONSTANT)
@pytest.mark.parametrize(
    "make", [lambda b: Adam(0.01, beta2=b), lambda b: AdamW(0.01, beta1=b, beta2=b), lambda b: RMSProp(decay=b)]
)
def test_a_decay_rate_loses_nothing_as_an_argument(make, beta):
    (argument, state), (closed, expected) = (trained(make(beta), 200, argument) for argument in (True, False))
    for a, b in zip(jax.tree.leaves((argument, state)), jax.tree.leaves((closed, expected)), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("beta", CONSTANT)
def test_the_second_moment_of_a_constant_gradient(beta):
    """v = (1 − βᵗ) g², so that Adam's steps are the rate, whatever β."""
    optimizer, params = Adam(learning_rate=1.0, beta2=beta, epsilon=0.0), jnp.zeros(())
    step = jax.jit(lambda optimizer, params, state: optimizer.update(params, jnp.float32(0.5), state))
    state = optimizer.init(params)
    for t in range(1, 4):
        params, state = step(optimizer, params, state)
        assert float(params) == pytest.approx(-t, rel=1e-6)
    assert float(state.slots.nu) == pytest.approx(0.25 * -np.expm1(3 * np.log1p(-(1 - beta))), rel=3e-7)


@pytest.mark.parametrize("gamma", [0.99999, 0.999999, 1 - 1e-7, 0.97, 1.00001, 0.1])
@pytest.mark.parametrize("make", [lambda g: ExponentialLR(0.1, g), lambda g: StepLR(0.1, 1, g)])
def test_a_factor_loses_nothing_as_an_argument(make, gamma):
    steps = np.array([0, 1, 10, 1000, 10**5, 10**6, 10**7])
    expected = np.float64(0.1) * np.float64(gamma) ** steps
    argument, closed = jax.jit(lambda schedule: schedule(steps))(make(gamma)), make(gamma)(steps)
    np.testing.assert_array_equal(argument, closed)
    kept = (expected > 1e-37) & (expected < 3e38)
    np.testing.assert_allclose(np.asarray(closed)[kept], expected[kept], rtol=2e-7)


def test_a_plateau_loses_nothing_as_an_argument():
    optimizer = SGD(learning_rate=ReduceLROnPlateau(1.0, factor=0.99999, patience=0, eps=0.0))
    state = optimizer.init(jnp.zeros(1))
    memory = state.schedules["learning_rate"]._replace(num_reductions=jnp.int32(10**5))
    state = state._replace(schedules={"learning_rate": memory})
    rate = jax.jit(lambda optimizer: optimizer.get_learning_rate(state))(optimizer)
    assert float(rate) == pytest.approx(0.99999**1e5, rel=2e-7)


def test_a_decay_rate_prints_compares_and_hashes_as_its_number():
    optimizer = Adam(beta1=0.8)
    assert repr(optimizer.beta1) == "0.8"
    assert optimizer.beta1 == 0.8
    assert hash(optimizer.beta1) == hash(0.8)
    assert float(np.asarray(optimizer.beta1)) == float(optimizer.beta1) == 0.8
    assert float(jnp.asarray(optimizer.beta1)) == pytest.approx(0.8)
    assert optimizer == Adam(beta1=DecayRate(0.8))
    assert jax.tree.map(lambda number: number, optimizer) == optimizer
    assert jax.tree.map(jnp.asarray, optimizer).beta1.complement == Adam(beta1=0.8).beta1.complement


def test_a_decay_rate_has_no_arithmetic():
    for wrong in (lambda b: b * 2, lambda b: 1 - b, lambda b: b + 1):
        with pytest.raises(TypeError, match="unsupported operand"):
            wrong(Adam().beta1)


@pytest.mark.parametrize("offset", [1, -1, 0])
def test_a_power_of_another_update_is_its_own(offset):
    class Ahead(LeafOptimizer):
        learning_rate: float = 1.0
        beta: float = decay_rate(default=0.9)

        def init_leaf(self, param):
            return None

        def update_leaf(self, param, grad, slots, t):
            return jnp.full_like(param, self.beta.one_minus_power(t + offset)), slots

    optimizer = pytree(Ahead)()
    state = optimizer.init(jnp.zeros(()))._replace(step=jnp.int32(4))
    new, _ = optimizer.update(jnp.zeros(()), jnp.zeros(()), state)
    assert float(new) == pytest.approx(-(1 - 0.9 ** (5 + offset)), rel=1e-6)


def test_a_scheduled_decay_rate_is_one_too():
    optimizer = Adam(beta1=CosineAnnealingLR(0.9, T_max=50, eta_min=0.5))
    assert isinstance(optimizer.at(50).beta1, DecayRate)
    assert float(optimizer.at(50).beta1) == 0.5


def test_the_derivative_by_a_decay_rate_is_that_of_its_number():
    def loss(optimizer, dtype):
        params, state = jnp.ones((), dtype), optimizer.init(jnp.ones((), dtype))
        for grad in (0.3, -0.2, 0.5):
            params, state = optimizer.update(params, jnp.asarray(grad, dtype), state)
        return params

    slope = jax.grad(loss)(Adam(learning_rate=0.1, beta2=0.9), jnp.float32).beta2
    with jax.enable_x64(True):
        above, below = (loss(Adam(0.1, beta2=0.9 + sign * 1e-6), jnp.float64) for sign in (1, -1))
    assert float(slope.value) == pytest.approx(float(above - below) / 2e-6, rel=1e-4)
    assert float(slope.rest) == 0.0


def test_zeros_of_a_user():
    assert zeros(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    assert zeros(jnp.ones(2, jnp.complex64)).dtype == jnp.complex64
    assert real_zeros(jnp.ones(2, jnp.complex64)).dtype == jnp.float32


@pytest.mark.parametrize("t", [1, 1000, 2**24, 2**31 - 1])
def test_the_derivative_of_a_power_at_any_update(t):
    slope = jax.grad(lambda beta: DecayRate(beta).one_minus_power(jnp.float32(t)))(0.99)
    np.testing.assert_allclose(slope, -t * 0.99 ** (t - 1.0), rtol=1e-3, atol=1e-30)
