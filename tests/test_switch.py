"""An optimizer that is on or off: what is off stays as it is, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import drive, trainer_of
from zoo import PLATEAU, WARMUP, bits, groups, make_params, specs

from mithril_opt import (
    SGD,
    Accumulate,
    Adam,
    AdamW,
    ConstantLR,
    Frozen,
    MultiOptimizer,
    ReduceLROnPlateau,
    Switch,
    from_optax,
    from_state_dict,
    to_state_dict,
)

PARAMS = make_params()


def from_two_on(step):
    return step >= 2


def every_second(step):
    return step % 2 == 1


def run(optimizer, steps, params=PARAMS, state=None, seed=1):
    state, update = optimizer.init(params) if state is None else state, jax.jit(optimizer.update)
    for i in range(steps):
        params, state = update(params, make_params(seed=seed + i), state)
    return params, state


@pytest.mark.parametrize("inner", [AdamW(learning_rate=WARMUP), SGD(0.1, momentum=0.9), groups(Frozen(), Adam())])
def test_off_is_untouched_and_on_begins_afresh(inner):
    """The warm-up and the bias corrections count from where it is on, as in a run that begins there."""
    optimizer = Switch(inner, on=from_two_on)
    params, state = run(optimizer, 2)
    assert bits(params) == bits(PARAMS)
    assert bits(state.optimizer) == bits(inner.init(PARAMS))
    assert int(optimizer.clock(state)) == 2
    params, state = run(optimizer, 3, params, state, seed=3)
    expected = run(inner, 3, seed=3)
    assert bits((params, state.optimizer)) == bits(expected)


def test_on_and_off_in_turns():
    """Two parts of a model that train in turns: each as if the other's steps had not been."""
    optimizer = groups(Switch(Adam(0.1), on=every_second), Switch(SGD(0.1), on=lambda step: step % 2 == 0))
    params, _ = run(optimizer, 6)
    first, state = {"embed": PARAMS["embed"]}, Adam(0.1).init({"embed": PARAMS["embed"]})
    for seed in (2, 4, 6):
        first, state = Adam(0.1).update(first, {"embed": make_params(seed=seed)["embed"]}, state)
    assert bits(params["embed"]) == bits(first["embed"])
    expected = PARAMS["body"]["w"] - 0.1 * sum(make_params(seed=seed)["body"]["w"] for seed in (1, 3, 5))
    np.testing.assert_allclose(params["body"]["w"], expected, rtol=1e-6)


def test_in_a_group_it_goes_by_the_clock_of_all_groups():
    """A run that starts elsewhere, `state._replace(step=…)`, is switched by that; the inner clock counts on."""
    optimizer = groups(SGD(0.1), Switch(Adam(0.1), on=lambda step: step >= 100))
    params, state = run(optimizer, 1, state=optimizer.init(PARAMS)._replace(step=jnp.int32(99)))
    assert bits(params["body"]) == bits(PARAMS["body"])
    params, state = run(optimizer, 1, params, state)
    assert bits(params["body"]) != bits(PARAMS["body"])
    assert int(state.slots["body"].step) == int(state.step) == 101
    assert int(state.slots["body"].optimizer.step) == 1


def test_a_schedule_says_when():
    optimizer = Switch(SGD(learning_rate=1.0), on=ConstantLR(1.0, factor=0.0, total_iters=2))
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    params, state = PARAMS, optimizer.init(PARAMS)
    for moved in (0, 0, 1, 2):
        params, state = optimizer.update(params, grads, state)
        np.testing.assert_allclose(params["embed"], PARAMS["embed"] - moved, rtol=1e-6, atol=1e-6)


def test_a_gradient_that_is_nan_while_it_is_off():
    optimizer = Switch(Adam(), on=from_two_on)
    nan = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), PARAMS)
    params, state = optimizer.update(PARAMS, nan, optimizer.init(PARAMS))
    assert bits(params) == bits(PARAMS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_the_rate_is_0_while_it_is_off():
    optimizer = Switch(groups(SGD(0.5), SGD(0.25)), on=from_two_on)
    for steps, (first, second) in ((1, (0.0, 0.0)), (2, (0.5, 0.25))):
        _, state = run(optimizer, steps)
        for rates in (optimizer.get_learning_rate(state), optimizer.learning_rates(state)):
            assert rates == {"embedding": first, "body": second}


def test_its_clock_saturates():
    optimizer, last = Switch(SGD(), on=from_two_on), jnp.int32(2**31 - 1)
    _, state = optimizer.update(PARAMS, PARAMS, optimizer.init(PARAMS)._replace(step=last))
    assert int(state.step) == last


def test_metrics_reach_it_only_while_it_is_on():
    optimizer = Switch(SGD(learning_rate=PLATEAU), on=from_two_on)
    state = optimizer.init(PARAMS)
    assert bits(optimizer.observe(state, 1.0)) == bits(state)
    _, on = run(optimizer, 6)
    seen = optimizer.observe(on, 1.0)
    assert bits(seen) != bits(on)
    assert specs(seen) == specs(on)


def test_under_the_trainer_and_inside_a_window():
    trainer = trainer_of(Switch(SGD(learning_rate=0.1), on=from_two_on), loss_scale=2.0)
    _, state, *_ = drive(trainer, "TFTNT")
    assert (int(state.optimizer.step), int(state.optimizer.optimizer.step)) == (3, 1)
    _, state = run(Accumulate(Switch(SGD(0.1), on=from_two_on), every=2), 6)
    assert (int(state.optimizer.step), int(state.optimizer.optimizer.step)) == (3, 1)
    multi = groups(Accumulate(Switch(SGD(0.1), on=from_two_on), every=2), Accumulate(SGD(0.1), every=2))
    trainer = trainer_of(multi, loss_scale=2.0)
    _, state, *_ = drive(trainer, "TTTTTT")
    assert int(state.optimizer.slots["embedding"].optimizer.optimizer.step) == 1


def test_what_is_inside_may_keep_to_itself():
    optimizer = Switch(from_optax(optax.adam(0.1)), on=every_second)
    params, _ = run(optimizer, 2)
    alone = from_optax(optax.adam(0.1))
    assert bits(params) == bits(run(alone, 1, seed=2)[0])


def test_state_by_name_and_resumed():
    optimizer = Switch(Adam(0.1), on=from_two_on)
    params, state = run(optimizer, 1)
    saved = {name: np.asarray(value) for name, value in to_state_dict(state).items()}
    assert {"step", "optimizer/step", "optimizer/slots/mu/embed"} <= set(saved)
    restored = from_state_dict(jax.eval_shape(optimizer.init, PARAMS), saved)
    assert bits(run(optimizer, 4, params, restored)) == bits(run(optimizer, 4, params, state))


def test_thawing_a_frozen_group_carries_the_state_of_the_others():
    """A leaf that was frozen has no slots; those of the other group keep their moments, to the bit."""
    frozen = MultiOptimizer({"base": Frozen(), "head": Adam(0.1)}, groups={"base": "embed", "head": ...})
    params, state = run(frozen, 3)
    thawed = MultiOptimizer({"base": Switch(Adam(0.1), on=lambda step: True), "head": Adam(0.1)}, groups=dict(frozen.groups))
    carried = from_state_dict(thawed.init(params), to_state_dict(state), strict=False)
    assert int(carried.step) == 3
    assert bits(carried.slots["head"]) == bits(state.slots["head"])
    after, _ = run(thawed, 1, params, carried, seed=4)
    expected, _ = run(frozen, 1, params, state, seed=4)
    assert bits(after["body"]) == bits(expected["body"])
    # A first step of Adam, whatever the clock of the others says.
    np.testing.assert_allclose(params["embed"] - after["embed"], 0.1 * jnp.sign(make_params(seed=4)["embed"]), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Switch(SGD(), on=1.0), TypeError, "Switch takes a schedule or a function of the step, got 1.0"),
        (lambda: Switch(SGD(), on=ReduceLROnPlateau(1.0)), ValueError, "Switch: on cannot follow a metric"),
        (lambda: Switch(Accumulate(SGD(), every=2), on=from_two_on), ValueError, r"write Accumulate\(Switch\(…\)\)"),
        (lambda: Switch("sgd", on=from_two_on), TypeError, "Switch: optimizer must be an Optimizer"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
