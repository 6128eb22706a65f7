"""The schedules against their closed forms in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import restarts, wave

from mithril_opt import (
    SGD,
    Adam,
    AdamW,
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineCyclesLR,
    CosineDecayLR,
    CosineHardRestartsLR,
    CyclicLR,
    ExponentialLR,
    InverseSqrtLR,
    LambdaLR,
    LinearLR,
    LinearWarmupScheduler,
    MultiplicativeLR,
    MultiStepLR,
    NoamLR,
    OneCycleLR,
    PerEpoch,
    PolynomialDecayLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
    WarmupCosLR,
    WarmupStableDecayLR,
)

STEPS = np.arange(160)


def noam(d, w, factor=1.0):
    return lambda k: factor * d**-0.5 * min(k**-0.5, k * w**-1.5) if k else 0.0


def warmup_cos(e, low=0.01, lr=0.3, w=7, end=40):
    return lr * (e + 1) / w if e < w else low + (lr - low) * wave(min(1, (e - w) / (end - w)))


# Those that PyTorch and transformers lack, and those of theirs that are short enough to write down twice.
CLOSED_FORMS = [
    (LambdaLR(0.3, lambda step: 1 / (1 + step)), lambda k: 0.3 / (1 + k)),
    (StepLR(0.3, step_size=30, gamma=0.7), lambda k: 0.3 * 0.7 ** (k // 30)),
    (ExponentialLR(0.3, gamma=0.9), lambda k: 0.3 * 0.9**k),
    (ExponentialLR(0.3, gamma=1.01), lambda k: 0.3 * 1.01**k),
    (ConstantLR(0.3), lambda k: 0.1 if k < 5 else 0.3),
    (CosineAnnealingLR(0.3, T_max=30, eta_min=0.01), lambda k: 0.01 + 0.29 * (1 + math.cos(math.pi * k / 30)) / 2),
    (CosineDecayLR(0.3, decay_steps=30, min_lr=0.01), lambda k: 0.01 + 0.29 * wave(min(k, 30) / 30)),
    (CosineAnnealingWarmRestarts(0.3, T_0=3, T_mult=2, eta_min=0.01), lambda k: restarts(k, 3, 2, 0.01)),
    (CosineAnnealingWarmRestarts(0.3, T_0=9), lambda k: restarts(k, 9, 1)),
    (LinearWarmupScheduler(7, 0.01, 0.3), lambda k: 0.01 + 0.29 * k / 7 if k < 7 else 0.3),
    (LinearWarmupScheduler(100, 0.3, 0.0), lambda k: 0.3 * max(0, 100 - k) / 100),
    (
        LinearWarmupScheduler(7, 0.0, 0.3, after_scheduler=ExponentialLR(0.3, gamma=0.9)),
        lambda k: 0.3 * k / 7 if k < 7 else 0.3 * 0.9 ** (k - 7),
    ),
    (PerEpoch(StepLR(0.3, step_size=2), steps_per_epoch=11), lambda k: 0.3 * 0.1 ** (k // 11 // 2)),
    (WarmupCosLR(0.01, 0.3, warmup_epochs=7, epochs=40), warmup_cos),
    (WarmupCosLR(0.0, 0.3, warmup_epochs=0, epochs=40), lambda e: 0.3 * wave(min(1, e / 40))),
    (WarmupCosLR(0.1, 0.3, warmup_epochs=4, epochs=4), lambda e: 0.3 * (e + 1) / 4 if e < 4 else 0.1),
    (NoamLR(512, 40), noam(512, 40)),
    (NoamLR(7, 1, factor=2.0), noam(7, 1, 2.0)),
    (InverseSqrtLR(0.3, timescale=17), lambda k: 0.3 * math.sqrt(17 / (17 + k))),
    (PolynomialDecayLR(0.3, 60, lr_end=1e-3, power=3.0), lambda k: 1e-3 + 0.299 * (1 - min(k, 60) / 60) ** 3),
    (MultiStepLR(0.3, [], gamma=0.5), lambda k: 0.3),
    (
        SequentialLR([StepLR(0.3, 4), ConstantLR(0.2), ExponentialLR(0.1, 0.9)], [0, 9]),
        lambda k: (0.2 / 3 if k < 5 else 0.2) if k < 9 else 0.1 * 0.9 ** (k - 9),
    ),
    (
        ChainedScheduler([LinearWarmupScheduler(10, 0.0, 1.0), WarmupCosLR(0.01, 0.3, 7, 40), lambda k: 1 / (1.0 + k)]),
        lambda k: min(1, k / 10) * warmup_cos(k) / (1 + k),
    ),
]


@pytest.mark.parametrize(("schedule", "closed_form"), CLOSED_FORMS)
def test_closed_form(schedule, closed_form):
    np.testing.assert_allclose(schedule(STEPS), [closed_form(k) for k in STEPS.tolist()], rtol=1e-6, atol=1e-18)


def test_the_warmup_chain_gives_the_next_piece_a_clock_from_zero():
    seen = []

    def spy(step):
        seen.append(np.asarray(step))
        return 0.1 * jnp.ones(np.shape(step))

    LinearWarmupScheduler(5, 0.0, 0.1, after_scheduler=spy)(np.arange(12))
    np.testing.assert_array_equal(seen[0], np.maximum(np.arange(12) - 5, 0))


def test_without_warmup_the_chain_is_the_next_piece():
    after = CosineAnnealingLR(0.5, T_max=9)
    np.testing.assert_array_equal(LinearWarmupScheduler(0, 0.0, 0.5, after)(np.arange(30)), after(np.arange(30)))


def test_after_a_milestone_the_next_piece_has_a_clock_from_zero():
    seen = {}

    def spy(name):
        def function(step):
            seen[name] = np.asarray(step)
            return 0.1 * jnp.ones(np.shape(step))

        return function

    SequentialLR([spy("a"), spy("b"), spy("c")], [3, 7])(np.arange(12))
    for name, start in {"a": 0, "b": 3, "c": 7}.items():
        np.testing.assert_array_equal(seen[name], np.maximum(np.arange(12) - start, 0))


def test_traced_lengths_and_milestones():
    """Integers may be traced too; then nothing is checked, and nothing is compiled anew when they change."""
    steps, traces = np.arange(60), []

    def schedules(n, a, b):
        return [
            MultiStepLR(0.3, [a, b], 0.5),
            MultiStepLR(0.3, jnp.stack([a, b]) if isinstance(a, jax.Array) else np.array([a, b]), 0.5),
            SequentialLR([StepLR(0.3, n), LinearLR(0.3, total_iters=n), ExponentialLR(0.3, 0.9)], [a, b]),
            CosineAnnealingLR(0.3, n),
            CosineCyclesLR(0.3, n, 1.5),
            CosineHardRestartsLR(0.3, n, 3),
            CosineAnnealingWarmRestarts(0.3, n, 2),
            CosineAnnealingWarmRestarts(0.3, n, n // n),
            CyclicLR(0.1, 0.3, n, 2 * n, "triangular2"),
            OneCycleLR(0.3, n, 0.4, three_phase=True),
            WarmupCosLR(0.0, 0.3, a, b),
            NoamLR(n, a),
            PolynomialLR(0.3, n, 2.0),
            WarmupStableDecayLR(0.3, a, b, n),
            PerEpoch(InverseSqrtLR(0.3, n), a),
        ]

    @jax.jit
    def values(n, a, b):
        traces.append(None)
        return [schedule(steps) for schedule in schedules(n, a, b)]

    for n, a, b in ((10, 5, 20), (13, 4, 17)):
        for traced, schedule in zip(values(n, a, b), schedules(n, a, b), strict=True):
            np.testing.assert_allclose(traced, schedule(steps), rtol=2e-6, atol=1e-9)
    assert len(traces) == 1


def test_the_product_of_a_function_that_depends_on_the_step():
    """Whole chunks of factors, their boundaries, the very first factor unused; against NumPy in float64."""
    rare = MultiplicativeLR(1.0, lambda step: jnp.where(step % 3000 == 0, 0.5, 1.0))
    steps = np.array([0, 1, 2999, 3000, 3001, 4095, 4096, 4097, 8192, 8193, 29_999, 30_000])
    np.testing.assert_array_equal(rare(steps), 0.5 ** (steps // 3000))
    factors = 1 + np.sin(np.arange(6000.0)) / 1000
    smooth = MultiplicativeLR(1.0, lambda step: 1 + jnp.sin(step.astype(jnp.float32)) / 1000)
    products = np.cumprod(factors[1:])
    np.testing.assert_allclose(smooth(np.arange(1, 6000)), products, rtol=2e-5)
    assert float(smooth(0)) == 1.0


def test_a_constant_factor_costs_no_loop():
    loops = lambda schedule: str(jax.make_jaxpr(schedule)(jnp.int32(3))).count("while")  # noqa: E731
    assert loops(MultiplicativeLR(0.1, lambda step: 0.95)) == 0
    assert loops(MultiplicativeLR(0.1, lambda step: jnp.float32(0.95))) == 1
    np.testing.assert_allclose(MultiplicativeLR(1.0, lambda step: np.float64(0.99999))(100_000), 0.99999**100_000, rtol=1e-6)


@pytest.mark.parametrize("factor", [-0.5, -1, -1.5, 0])
def test_factors_of_any_sign(factor):
    """A constant that is below 0 turns the sign in each step, in one multiplication as in a loop of them."""
    steps = np.arange(6)
    np.testing.assert_allclose(MultiplicativeLR(0.5, lambda step: factor)(steps), 0.5 * float(factor) ** steps, rtol=1e-6)
    np.testing.assert_allclose(
        MultiplicativeLR(0.5, lambda step: jnp.float32(factor))(steps), 0.5 * float(factor) ** steps, rtol=1e-6
    )


def test_a_factor_that_branches_in_python_on_the_step_is_refused():
    """PyTorch's idiom `lambda epoch: 0.9 if epoch > 5 else 1.0` cannot be traced; it must not pass for a constant."""
    with pytest.raises(TypeError, match=r"MultiplicativeLR\(.*: a function of the step is traced"):
        MultiplicativeLR(0.1, lambda epoch: 0.9 if epoch > 5 else 1.0)(3)


def test_the_momentum_cycles_drive_momentum_and_beta1():
    cycle = OneCycleLR(1.0, total_steps=10)
    optimizer = Adam(learning_rate=cycle, beta1=cycle.momentum_schedule(base_momentum=0.5, max_momentum=0.75))
    assert [float(optimizer.at(k).beta1) for k in (0, 2, 9, 100)] == [0.75, 0.5, 0.75, 0.75]
    triangle = CyclicLR(0.1, 1.0, step_size_up=4)
    optimizer = SGD(learning_rate=triangle, momentum=triangle.momentum_schedule(base_momentum=0.5, max_momentum=0.75))
    assert [float(optimizer.at(k).momentum) for k in (0, 2, 4, 8)] == [0.75, 0.625, 0.5, 0.75]
    params = jnp.ones(3)
    _, state = optimizer.update(params, params, optimizer.init(params))
    assert state.slots.trace.shape == (3,)


def test_every_number_may_be_a_schedule():
    schedule = StepLR(0.5, step_size=1, gamma=0.5)
    optimizer = AdamW(learning_rate=0.1, beta1=schedule, beta2=schedule, epsilon=schedule, weight_decay=schedule)
    at = optimizer.at(1)
    assert [float(x) for x in (at.beta1, at.beta2, at.epsilon, at.weight_decay)] == [0.25] * 4
    state = optimizer.init(jnp.ones(3))
    params, state = optimizer.update(jnp.ones(3), jnp.ones(3), state)
    np.testing.assert_allclose(params, 1 - 0.1 * (1 / (1 + 0.5) + 0.5), rtol=1e-6)


def test_functions_and_callable_pytrees_are_schedules_too():
    def rate(step):
        return 0.5 / (1.0 + step)

    scaled = jax.tree_util.Partial(lambda factor, step: factor * step, jnp.float32(0.25))
    assert float(SGD(learning_rate=rate).at(1).learning_rate) == 0.25
    assert float(SGD(learning_rate=scaled).at(2).learning_rate) == 0.5
    assert len(jax.tree.leaves(SGD(learning_rate=scaled))) == 1


def test_traced_numbers_pass():
    assert jax.jit(lambda rate: SGD(learning_rate=rate).learning_rate)(-1.0) == -1.0


def test_a_step_outside_construction_is_not_checked():
    """The gradient with respect to an optimizer is an optimizer of gradients, which may be negative."""
    negative = jax.tree.map(lambda number: -number, Adam(learning_rate=0.1))
    assert negative.learning_rate == -0.1
    assert jax.tree.structure(negative) == jax.tree.structure(Adam())
