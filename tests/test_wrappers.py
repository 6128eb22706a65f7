"""A wrapper that changes nothing is the optimizer inside it, whatever that is, and whatever is asked of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import trainer_of
from zoo import PLATEAU, WARMUP, bits, groups, make_params

from mithril_opt import (
    EMA,
    SGD,
    Accumulate,
    Adam,
    AdamW,
    Clip,
    Frozen,
    Lookahead,
    MultiOptimizer,
    Optimizer,
    Prodigy,
    Round,
    ScaleRate,
    ScheduleFree,
    ScheduleFreeSGD,
    Wrapper,
    explain,
    from_optax,
    lr_range_test,
    pytree,
    to_optax,
)

PARAMS, GRADS = make_params(), make_params(seed=1)


@pytree
class Nothing(Wrapper):
    optimizer: Optimizer


# Each row around an inner optimizer changes nothing.
WRAPPERS = {
    "nothing": Nothing,
    "clip": lambda inner: Clip(inner, clip_value=1e30),
    "accumulate": lambda inner: Accumulate(inner, every=1),
    "twice": lambda inner: Nothing(Accumulate(Nothing(inner), every=1)),
}
INNER = {
    "adamw": lambda: AdamW(learning_rate=WARMUP),
    "plateau": lambda: SGD(learning_rate=PLATEAU, momentum=0.9),
    "multi": lambda: groups(Frozen(), Adam(learning_rate=PLATEAU)),
    "optax": lambda: from_optax(optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
    "accumulate": lambda: Accumulate(SGD(learning_rate=0.1), every=3),
}


PAIRS = [(wrap, inner) for wrap in WRAPPERS for inner in INNER if inner != "accumulate" or wrap in ("nothing", "clip")]


@pytest.fixture(params=WRAPPERS, name="wrap")
def fixture_wrap(request):
    return WRAPPERS[request.param]


@pytest.fixture(params=INNER, name="inner")
def fixture_inner(request):
    return INNER[request.param]()


@pytest.fixture(params=PAIRS, ids="-".join, name="pair")
def fixture_pair(request):
    """A wrapper and an optimizer to put inside; a window of windows is refused."""
    wrap, inner = request.param
    return WRAPPERS[wrap], INNER[inner]()


def inside(optimizer, state):
    """The state of the optimizer inside all wrappers of the table."""
    while isinstance(optimizer, Nothing | Clip) or (isinstance(optimizer, Accumulate) and optimizer.every == 1):
        optimizer, state = optimizer.optimizer, optimizer.inner(state)
    return state


def test_updates_are_the_same(pair):
    wrap, inner = pair
    optimizer = wrap(inner)
    (params, state), (expected, alone) = ((PARAMS, o.init(PARAMS)) for o in (optimizer, inner))
    for seed in range(4):
        params, state = optimizer.update(params, make_params(seed=seed), state)
        expected, alone = inner.update(expected, make_params(seed=seed), alone)
    assert bits(params) == bits(expected)
    assert bits(inside(optimizer, state)) == bits(alone)


def test_rates_are_the_same(pair):
    wrap, inner = pair
    optimizer = wrap(inner)
    state, alone = optimizer.init(PARAMS), inner.init(PARAMS)
    assert bits(optimizer.get_learning_rate(state)) == bits(inner.get_learning_rate(alone))
    assert optimizer.learning_rates(state) == inner.learning_rates(alone)
    for step in (0, 2, 5):
        assert bits(optimizer.at(step)) == bits(wrap(inner.at(step)))


def test_metrics_reach_the_schedules(pair):
    wrap, inner = pair
    optimizer = wrap(inner)
    state, alone = optimizer.init(PARAMS), inner.init(PARAMS)
    for metric in (1.0, 2.0, 3.0, 4.0):
        state, alone = optimizer.observe(state, metric), inner.observe(alone, metric)
    assert bits(inside(optimizer, state)) == bits(alone)
    assert bits(optimizer.resolve(state)) == bits(wrap(inner.resolve(alone)))


def test_windows_and_skips_are_the_same(inner):
    optimizer = Nothing(inner)
    state = alone = inner.init(PARAMS)
    for verdict in (1, 2, 1, 1):
        assert bits(optimizer.window(state)) == bits(inner.window(alone))
        state, alone = optimizer.skip(state, jnp.int32(verdict)), inner.skip(alone, jnp.int32(verdict))
    assert bits(state) == bits(alone)
    assert optimizer.window_length == inner.window_length


def test_frozen_leaves_groups_and_evaluation_parameters_are_the_same(pair):
    wrap, inner = pair
    optimizer = wrap(inner)
    assert bits(optimizer.drop_frozen(PARAMS, GRADS)) == bits(inner.drop_frozen(PARAMS, GRADS))
    assert optimizer.rules(PARAMS) == inner.rules(PARAMS)
    assert bits(optimizer.eval_params(PARAMS, optimizer.init(PARAMS))) == bits(PARAMS)
    assert optimizer.takes_extra_args == inner.takes_extra_args
    if optimizer.state_type is inner.state_type:
        assert bits(optimizer.init(PARAMS)) == bits(inner.init(PARAMS))


def test_the_table_of_explain_is_the_same(wrap):
    inner = groups(AdamW(learning_rate=WARMUP), SGD())
    table, alone = explain(wrap(inner), PARAMS, 10), explain(inner, PARAMS, 10)
    assert [row[:-1] for row in table.rows] == [row[:-1] for row in alone.rows]


@pytest.mark.parametrize("every", [1, 2])
def test_extra_arguments_reach_an_optax_rule(wrap, every):
    plateau = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    optimizer = Accumulate(wrap(groups(from_optax(plateau), SGD())), every=every)
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(4 * every):
        params, state = jax.jit(optimizer.update)(params, GRADS, state, value=jnp.float32(1.0))
    assert float(optax.tree.get(state, "scale")) < 1
    assert optimizer.takes_extra_args
    with pytest.raises(TypeError, match=r"update takes no further arguments.*got \['value'\]"):
        wrap(SGD()).update(PARAMS, GRADS, wrap(SGD()).init(PARAMS), value=1.0)


def test_a_range_test_of_a_wrapped_optimizer(wrap):
    loss = lambda params, x: jnp.mean((params * x) ** 2)  # noqa: E731
    search = lambda optimizer: lr_range_test(loss, jnp.float32(1.0), [jnp.ones(4)], optimizer=optimizer, progress=False)  # noqa: E731
    # Two programs, whose last bits differ where XLA fuses them in different ways.
    np.testing.assert_allclose(search(wrap(SGD())).losses, search(SGD()).losses, rtol=1e-5)


def test_as_a_transformation_of_optax(wrap):
    optimizer = wrap(AdamW(learning_rate=WARMUP))
    transformation, expected = to_optax(optimizer), to_optax(AdamW(learning_rate=WARMUP))
    state, alone = transformation.init(PARAMS), expected.init(PARAMS)
    for seed in range(3):
        updates, state = transformation.update(make_params(seed=seed), state, PARAMS)
        others, alone = expected.update(make_params(seed=seed), alone, PARAMS)
    assert bits(updates) == bits(others)


def test_under_the_trainer(pair):
    wrap, inner = pair
    (params, state), (expected, alone) = (_skipping(trainer_of(o, loss_scale=2.0)) for o in (wrap(inner), inner))
    assert bits(params) == bits(expected)
    assert bits(state.loss_scale) == bits(alone.loss_scale)
    assert bits(inside(wrap(inner), state.optimizer)) == bits(alone.optimizer)


def _skipping(trainer):
    params, state = PARAMS, trainer.init(PARAMS)
    for seed in range(7):
        grads = jax.tree.map(lambda grad, bad=seed in (1, 5): grad * (jnp.inf if bad else 2.0), make_params(seed=seed))
        params, state, _ = trainer.update(params, grads, state)
    return params, state


def test_a_wrapper_may_change_the_updates_of_any_optimizer(inner):
    @pytree
    class Half(Wrapper):
        optimizer: Optimizer

        def compute_updates(self, params, grads, state, **extra_args):
            updates, state = self.inner_updates(params, grads, state, **extra_args)
            return jax.tree.map(lambda update: 0.5 * update, updates), state

    (params, state), (whole, alone) = ((PARAMS, o.init(PARAMS)) for o in (Half(inner), inner))
    for seed in range(3):
        params, state = Half(inner).update(PARAMS, make_params(seed=seed), state)
        whole, alone = inner.update(PARAMS, make_params(seed=seed), alone)
    for p, half, all_ in zip(*map(jax.tree.leaves, (PARAMS, params, whole)), strict=True):
        np.testing.assert_allclose(half - p, 0.5 * (all_ - p), rtol=1e-4, atol=1e-6)


OWNERS = {
    "ScheduleFreeSGD": (lambda: ScheduleFreeSGD(), "ScheduleFree"),
    "ScheduleFree": (lambda: Clip(ScheduleFree(SGD()), clip_norm=1.0), "ScheduleFree"),
    "Round": (lambda: groups(SGD(), Round(SGD())), "Round"),
    "Prodigy": (lambda: Accumulate(Prodigy(), every=2), None),
}


@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize(
    "change", [lambda o: ScaleRate(o, {"embed": 0.5}), lambda o: Lookahead(o, every=2)], ids=["ScaleRate", "Lookahead"]
)
def test_what_counts_on_its_very_updates_is_not_changed_from_outside(name, change):
    make, outside = OWNERS[name]
    changer = type(change(SGD())).__name__
    write = f"{outside}({changer}(...))" if outside else "a MultiOptimizer, whose groups have a Prodigy each"
    with pytest.raises(ValueError, match=rf"^{changer}: {name} .* very updates.*: write {re.escape(write)}"):
        change(make())
    change(EMA(groups(Frozen(), SGD())))


def test_a_wrapper_of_ones_own_is_told_when_it_changes_such_updates():
    @pytree
    class Same(Wrapper):
        optimizer: Optimizer

        def compute_updates(self, params, grads, state, **extra_args):
            return self.inner_updates(params, grads, state, **extra_args)

    optimizer = Same(Prodigy())
    with pytest.raises(ValueError, match=r"^Same: Prodigy .* very updates"):
        optimizer.update(PARAMS, GRADS, optimizer.init(PARAMS))


def test_a_rate_that_is_scaled_inside_of_schedule_free():
    """Where the factor is 0 neither z nor x nor y moves."""
    optimizer = ScheduleFree(ScaleRate(SGD(learning_rate=0.1), {"w": 0.0}))
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    state = optimizer.init(params)
    for _ in range(3):
        params, state = optimizer.update(params, params, state)
    np.testing.assert_array_equal(optimizer.eval_params(params, state)["w"], 1)
    assert optimizer.eval_params(params, state)["b"][0] < 0.95


@pytest.mark.parametrize("make", [Nothing, lambda inner: Clip(inner, clip_norm=1.0), lambda inner: Accumulate(inner, every=2)])
def test_something_else_inside(make):
    with pytest.raises(TypeError, match=r"optimizer must be an Optimizer, got 'adam'"):
        make("adam")


def test_a_trainers_state_given_to_the_optimizer(wrap):
    optimizer = wrap(SGD(learning_rate=0.1))
    state = trainer_of(optimizer).init(PARAMS)
    for call in (optimizer.get_learning_rate, optimizer.learning_rates, lambda s: optimizer.observe(s, 1.0), optimizer.resolve):
        with pytest.raises(ValueError, match=r"takes the state that init returned, got TrainerState; .*state.optimizer"):
            call(state)
    with pytest.raises(ValueError, match="got TrainerState"):
        optimizer.eval_params(PARAMS, state)


@pytest.mark.parametrize(
    "wrap", [lambda rule: rule, lambda rule: Accumulate(rule, 1), lambda rule: Clip(Accumulate(rule, 1), clip_norm=9.0)]
)
def test_groups_keep_one_clock(wrap):
    """Training that starts elsewhere is `_replace(step=…)`, whatever is wrapped around the rule of a group."""
    rule = SGD(learning_rate=lambda step: jnp.where(step < 100, 1.0, 0.0))
    multi = MultiOptimizer({"a": wrap(rule), "b": rule}, {"a": "a", "b": "b"})
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = multi.init(params)._replace(step=jnp.int32(99))
    params, state = multi.update(params, params, state)
    assert {name: float(leaf[0]) for name, leaf in params.items()} == {"a": 0.0, "b": 0.0}
    assert {name: float(rate) for name, rate in multi.get_learning_rate(state).items()} == {"a": 0.0, "b": 0.0}
    assert int(state.step) == 100
