"""ReduceLROnPlateau against torch's own values, which tests/oracles/torch_schedules.py recorded; and where we differ."""

import dataclasses
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import bits, make_params, specs

from mithril_opt import (
    SGD,
    Adam,
    ChainedScheduler,
    ExponentialLR,
    Frozen,
    LinearWarmupScheduler,
    MultiOptimizer,
    PerEpoch,
    PlateauState,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

with np.load(pathlib.Path(__file__).parent / "data" / "torch_schedules.npz") as file:
    RECORD = dict(file)
DESCRIPTION = json.loads(str(RECORD["description"]))
METRICS, RATES = RECORD["metrics"], RECORD["plateau_rates"]
PLATEAUS = [ReduceLROnPlateau(DESCRIPTION["base"], **arguments) for arguments in DESCRIPTION["plateaus"]]
OPPOSITE = {"min": "max", "max": "min"}


@jax.jit
@jax.vmap
def remember(schedule, metrics):
    """The memory after each observation."""

    def observe(memory, metric):
        memory = schedule.observe(memory, metric, 0)
        return memory, memory

    return jax.lax.scan(observe, schedule.init(), metrics)[1]


def rates(plateaus, metrics):
    """The rate after each observation, a row per plateau."""
    reductions = np.zeros(metrics.shape, np.int32)
    for mode, threshold_mode in itertools.product(("min", "max"), ("rel", "abs")):
        # All of them with these switches, so that one compilation serves every test; then those that have them.
        alike = [dataclasses.replace(plateau, mode=mode, threshold_mode=threshold_mode) for plateau in plateaus]
        memories = remember(jax.tree.map(lambda *numbers: jnp.asarray(numbers), *alike), metrics)
        own = np.array([one == plateau for one, plateau in zip(alike, plateaus, strict=True)])
        reductions[own] = np.asarray(memories.num_reductions)[own]
    return [
        plateau.read(plateau.init()._replace(num_reductions=row), jnp.zeros(row.shape, jnp.int32))
        for plateau, row in zip(plateaus, reductions, strict=True)
    ]


def follow(optimizer, metrics, state=None):
    """The rate after each observation."""
    state = optimizer.init(make_params()) if state is None else state
    seen = []
    for metric in metrics:
        state = optimizer.observe(state, metric)
        seen.append(float(optimizer.get_learning_rate(state)))
    return seen


def test_torchs_values():
    assert len(PLATEAUS) >= 100
    for option, values in {"patience": 6, "cooldown": 5, "min_lr": 4, "eps": 3, "threshold": 4, "factor": 4}.items():
        assert len({getattr(plateau, option) for plateau in PLATEAUS}) == values
    assert len(np.unique(RATES)) > 100
    np.testing.assert_allclose(rates(PLATEAUS, METRICS), RATES, rtol=1e-6)


def test_negative_metrics_mirror_positive_ones():
    """To maximize m is to minimize −m. torch holds for m ≥ 0; for the relative threshold it does not for −m."""
    mirrored = [
        ReduceLROnPlateau(DESCRIPTION["base"], **{**arguments, "mode": OPPOSITE[arguments["mode"]]})
        for arguments in DESCRIPTION["plateaus"]
    ]
    np.testing.assert_allclose(rates(mirrored, -METRICS), RATES, rtol=1e-6)


def test_metrics_that_are_not_finite_are_no_observations():
    half = METRICS.shape[1] // 2
    bad = np.resize(np.array([np.nan, np.inf, -np.inf], np.float32), (len(METRICS), half))
    interleaved = np.stack([METRICS[:, :half], bad], axis=2).reshape(METRICS.shape)
    np.testing.assert_allclose(rates(PLATEAUS, interleaved), np.repeat(RATES[:, :half], 2, axis=1), rtol=1e-6)


@pytest.mark.parametrize("metric", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_metric_that_is_not_finite_changes_no_bit(mode, metric):
    optimizer = SGD(learning_rate=ReduceLROnPlateau(0.1, mode=mode, patience=2))
    state = optimizer.init(make_params())
    for ordinary in (1.0, 1.0, 2.0):
        assert bits(optimizer.observe(state, metric)) == bits(state)
        state = optimizer.observe(state, ordinary)
    assert bits(optimizer.observe(state, metric)) == bits(state)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_constant_negative_metric_is_a_plateau(mode):
    optimizer = SGD(learning_rate=ReduceLROnPlateau(1.0, mode=mode, factor=0.5, patience=2))
    assert follow(optimizer, [-1.0] * 8) == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("row", range(3))
def test_in_a_scan_as_outside_with_the_numbers_closed_over(row):
    optimizer, metrics = SGD(learning_rate=PLATEAUS[row]), METRICS[row]

    def step(carry, metric):
        params, state = optimizer.update(carry[0], carry[0], optimizer.observe(carry[1], metric))
        return (params, state), optimizer.get_learning_rate(state)

    start = make_params(), optimizer.init(make_params())
    (_, state), scanned = jax.jit(lambda start: jax.lax.scan(step, start, metrics))(start)
    assert specs(state) == specs(start[1])
    assert int(state.step) == len(metrics)
    np.testing.assert_allclose(scanned, RATES[row], rtol=1e-6)
    np.testing.assert_allclose(follow(optimizer, metrics.tolist()), RATES[row], rtol=1e-6)


def test_the_memory_is_strongly_typed_scalars():
    memory = SGD(learning_rate=ReduceLROnPlateau(0.1)).init(make_params()).schedules["learning_rate"]
    assert isinstance(memory, PlateauState)
    for leaf, dtype in zip(memory, (jnp.float32, jnp.int32, jnp.int32, jnp.int32), strict=True):
        assert (leaf.dtype, leaf.shape, leaf.weak_type) == (dtype, (), False)


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, jnp.float32, jnp.bfloat16, int])
def test_kinds_of_metrics(kind):
    optimizer = SGD(learning_rate=ReduceLROnPlateau(1.0, factor=0.5, patience=0))
    state = optimizer.init(make_params())
    assert specs(optimizer.observe(state, kind(3))) == specs(state)
    assert follow(optimizer, [kind(3), kind(2), kind(2)]) == [1.0, 1.0, 0.5]


def test_a_metric_is_a_scalar():
    optimizer = SGD(learning_rate=ReduceLROnPlateau(0.1))
    with pytest.raises(ValueError, match=r"a metric is a scalar, got an array of shape \(1,\)"):
        optimizer.observe(optimizer.init(make_params()), jnp.ones(1))


def test_without_such_a_schedule_observing_is_the_identity():
    optimizer = SGD(learning_rate=StepLR(0.1, 3))
    state = optimizer.init(make_params())
    assert optimizer.observe(state, 1.0) is state


def test_another_base_rate_in_the_middle_is_honoured():
    state = SGD(learning_rate=ReduceLROnPlateau(1.0, factor=0.5, patience=0)).init(make_params())
    for _ in range(3):
        state = SGD(learning_rate=ReduceLROnPlateau(1.0, factor=0.5, patience=0)).observe(state, 1.0)
    assert float(SGD(learning_rate=ReduceLROnPlateau(8.0, factor=0.5, patience=0)).get_learning_rate(state)) == 2.0


def test_a_long_run_of_reductions_stays_exact():
    optimizer = SGD(learning_rate=ReduceLROnPlateau(1.0, factor=0.97, patience=0, eps=0.0))
    state = optimizer.init(make_params())
    observe = jax.jit(lambda state: jax.lax.scan(lambda state, _: (optimizer.observe(state, 1.0), None), state, length=1001)[0])
    np.testing.assert_allclose(optimizer.get_learning_rate(observe(state)), 0.97**1000, rtol=1e-6)


HALF = ReduceLROnPlateau(1.0, factor=0.5, patience=0)


def train(optimizer, metrics):
    """The rate before each update, with an observation after it."""
    params = make_params()
    state, seen = optimizer.init(params), []
    for metric in metrics:
        seen.append(float(optimizer.get_learning_rate(state)))
        params, state = optimizer.update(params, params, state)
        state = optimizer.observe(state, metric)
    return seen


def test_after_a_warmup():
    """What is observed before the step count reaches 3 does not count: not even as the best."""
    optimizer = SGD(learning_rate=LinearWarmupScheduler(3, 0.25, 1.0, after_scheduler=HALF))
    assert train(optimizer, [0.0, 0.0, 5.0, 5.0, 5.0, 1.0, 1.0]) == [0.25, 0.5, 0.75, 1.0, 0.5, 0.25, 0.25]


def test_in_a_sequence():
    schedule = SequentialLR([HALF, StepLR(0.125, 100), HALF], milestones=[3, 5])
    assert train(SGD(learning_rate=schedule), [1.0] * 9) == [1.0, 1.0, 0.5, 0.125, 0.125, 1.0, 0.5, 0.25, 0.125]


def test_in_a_product_and_in_epochs():
    schedule = ChainedScheduler([StepLR(8.0, 2, gamma=0.5), HALF])
    assert train(SGD(learning_rate=schedule), [1.0] * 4) == [8.0, 8.0, 2.0, 1.0]
    warmup = PerEpoch(LinearWarmupScheduler(1, 0.125, 1.0, HALF), steps_per_epoch=2)
    assert train(SGD(learning_rate=warmup), [1.0] * 5) == [0.125, 0.125, 1.0, 0.5, 0.25]


def test_in_groups_and_for_other_numbers():
    optimizer = MultiOptimizer(
        {
            "embedding": SGD(learning_rate=HALF),
            "weights": Adam(learning_rate=ExponentialLR(0.5, 0.5), weight_decay=ReduceLROnPlateau(1.0, factor=0.5, patience=1)),
            "rest": Frozen(),
        },
        groups={"embedding": "embed", "weights": "*/w", "rest": ...},
    )
    state = optimizer.init(make_params())
    for _ in range(3):
        _, state = optimizer.update(make_params(), make_params(), optimizer.observe(state, 1.0))
    assert {name: float(rate) for name, rate in optimizer.get_learning_rate(state).items()} == {
        "embedding": 0.25,
        "weights": 0.0625,
        "rest": 0.0,
    }
    assert float(optimizer.at(state.step, state.schedules).optimizers["weights"].weight_decay) == 0.5


def test_three_deep_and_two_plateaus_at_once():
    inner = ChainedScheduler([LinearWarmupScheduler(1, 0.5, 1.0, HALF), ReduceLROnPlateau(1.0, factor=0.125, patience=1)])
    schedule = SequentialLR([StepLR(4.0, 100), inner], milestones=[2])
    memory = schedule.init()
    assert jax.tree.structure(memory).num_leaves == 8
    # Updates 2 and on see the inner product; its first plateau is warmed up for one step more.
    assert train(SGD(learning_rate=schedule), [1.0] * 6) == [4.0, 4.0, 0.5, 1.0, 0.0625, 0.03125]


BAD = [
    (dict(mode="mim"), "ReduceLROnPlateau: mode must be one of 'min', 'max', got 'mim'"),
    (dict(threshold_mode="relative"), "threshold_mode must be one of 'rel', 'abs', got 'relative'"),
    (dict(factor=1.0), r"factor must be a number in \[0, 1\), got 1.0"),
    (dict(patience=-1), "patience must be an integer of at least 0, got -1"),
    (dict(cooldown=0.5), "cooldown must be an integer of at least 0, got 0.5"),
    (dict(min_lr=-1e-3), r"min_lr must be a number in \[0, inf\), got -0.001"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReduceLROnPlateau(0.1, **arguments)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nothing_in_it_is_infinite(mode):
    """`jax_debug_infs` stops at every infinity that a program makes."""
    optimizer, params = SGD(ReduceLROnPlateau(0.1, mode=mode, patience=0, threshold=0)), jnp.ones(3)
    with jax.debug_infs(True), jax.debug_nans(True):
        state = optimizer.init(params)
        params, state = jax.jit(optimizer.update)(params, params, state)
        for _ in range(2):
            state = jax.jit(optimizer.observe)(state, 0.5)
        assert optimizer.get_learning_rate(state) == pytest.approx(0.01)


@pytest.mark.parametrize(("mode", "first", "worse"), [("min", 3e38, 3.1e38), ("max", -3e38, -3.1e38)])
def test_any_metric_is_better_than_none(mode, first, worse):
    schedule = ReduceLROnPlateau(0.1, mode=mode, patience=0)
    memory = schedule.observe(schedule.init(), first, 0)
    assert (memory.best, memory.num_reductions) == (np.float32(first), 0)
    assert schedule.observe(memory, worse, 0).num_reductions == 1
