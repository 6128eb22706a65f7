"""What is committed is finite: a step whose rate is NaN, or that float16 parameters cannot hold, is no success."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import PARAMS, gradients, mlp, mlp_params, trainer_of
from zoo import bits, groups

from mithril_opt import (
    EMA,
    SGD,
    Accumulate,
    Adam,
    AdamW,
    AddNoise,
    Clip,
    Frozen,
    Lookahead,
    LossScaleStuckError,
    MixedPrecisionTrainer,
    MultiOptimizer,
    ScaleRate,
    ScheduleFree,
    Switch,
    from_optax,
)

BROKEN = {
    "rate": lambda bad: SGD(learning_rate=bad),
    "schedule": lambda bad: Adam(learning_rate=lambda step: jnp.where(step == 1, bad, 0.1)),
    "decay": lambda bad: AdamW(learning_rate=0.1, weight_decay=bad),
    "decay rate": lambda bad: Adam(learning_rate=0.1, beta2=bad),
    "wrapped": lambda bad: Clip(Accumulate(SGD(learning_rate=bad), every=1), clip_norm=1.0),
    "group": lambda bad: groups(Adam(learning_rate=0.1), SGD(learning_rate=bad)),
    "factor": lambda bad: ScaleRate(SGD(learning_rate=0.1), {"embed": bad}),
    "factor of a function": lambda bad: ScaleRate(SGD(learning_rate=0.1), lambda path, leaf: bad if path == "embed" else 1.0),
    "factor in a group": lambda bad: groups(ScaleRate(SGD(), lambda path, leaf: lambda step: bad), Adam()),
    "noise": lambda bad: AddNoise(SGD(learning_rate=0.1), eta=lambda step: bad),
    "slow weights": lambda bad: Lookahead(SGD(learning_rate=0.1), every=1, alpha=lambda step: bad),
    "average": lambda bad: EMA(SGD(learning_rate=0.1), decay=lambda step: bad),
    "schedule-free": lambda bad: ScheduleFree(SGD(learning_rate=0.1), beta1=bad),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_number_that_is_not_finite(name, bad):
    trainer = trainer_of(BROKEN[name](jnp.float32(bad)), loss_scale=4.0)
    params, state = PARAMS, trainer.init(PARAMS)
    if name == "schedule":
        params, state, success = trainer.update(params, gradients(1), state)
        assert success
    before = params, state.optimizer
    params, state, success = trainer.update(params, gradients(1), state)
    assert not success
    assert bits((params, state.optimizer)) == bits(before)
    assert (float(state.loss_scale.scale), int(state.loss_scale.skipped), int(state.loss_scale.bad_input)) == (4.0, 1, 1)


def test_a_number_of_what_is_off_does_not_matter():
    trainer = trainer_of(Switch(SGD(learning_rate=jnp.float32(jnp.nan)), on=lambda step: step > 0))
    params, state, success = trainer.update(PARAMS, gradients(1), trainer.init(PARAMS))
    assert success
    assert bits(params) == bits(PARAMS)
    assert not trainer.update(params, gradients(1), state)[2]


@pytest.mark.parametrize("bound", [jnp.inf, jnp.float32(jnp.inf)])
def test_an_infinite_bound_clips_nothing(bound):
    for trainer in (trainer_of(Clip(SGD(0.1), clip_norm=bound)), trainer_of(SGD(0.1), clip_norm=bound)):
        params, _, success = trainer.update(PARAMS, gradients(1), trainer.init(PARAMS))
        assert success
        plain = trainer_of(SGD(0.1))
        assert bits(params) == bits(plain.update(PARAMS, gradients(1), plain.init(PARAMS))[0])


@pytest.mark.parametrize("optimizer", [SGD(learning_rate=0.1), groups(Frozen(), Adam()), from_optax(optax.sgd(0.1))])
def test_finite_numbers_are_ready(optimizer):
    assert bool(optimizer.ready(optimizer.init(PARAMS), PARAMS))


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
@pytest.mark.parametrize("every", [1, 2])
def test_float16_parameters_that_a_step_would_overflow(policy, every):
    optimizer = Accumulate(SGD(learning_rate=1.0), every=every) if every > 1 else SGD(learning_rate=1.0, momentum=0.5)
    trainer = trainer_of(optimizer, policy=policy, loss_scale=1.0, dynamic_loss_scaling=False)
    params = {"w": jnp.asarray([6e4, 1.0], jnp.float16), "b": jnp.ones(2)}
    state = trainer.init(params)
    start = params, trainer.init(params).optimizer
    for _ in range(every):
        params, state, success = trainer.update(params, {"w": jnp.asarray([-1e4, 1.0]), "b": jnp.ones(2)}, state)
    assert not success
    assert bits(params) == bits(start[0])
    assert every > 1 or bits(state.optimizer) == bits(start[1])
    for _ in range(every):
        params, state, success = trainer.update(params, {"w": jnp.asarray([1e4, 1.0]), "b": jnp.ones(2)}, state)
    assert success
    np.testing.assert_array_equal(params["w"], np.array([5e4, 0.0], np.float16))
    assert int(state.loss_scale.bad_input) == 1


def test_what_float16_parameters_cannot_hold_is_no_leaf_with_a_bad_gradient():
    trainer, params = trainer_of(SGD(learning_rate=1.0), policy="bfloat16"), {"w": jnp.asarray([6e4], jnp.float16)}
    state = trainer.init(params)
    for grad, leaf in [(jnp.inf, 0), (-1e4, -1)]:
        params, state, success = trainer.update(params, {"w": jnp.array([grad])}, state)
        assert (bool(success), int(state.loss_scale.last_bad_leaf)) == (False, leaf)
    with pytest.raises(LossScaleStuckError, match="a new float16 parameter; of 2 steps 2 were skipped, 1 of them through no"):
        trainer.check(state, params)


@pytest.mark.parametrize("nothing", [None, {}, ()])
def test_no_loss_gradients_are_no_zero_gradients(nothing):
    trainer, params = trainer_of(model=mlp), mlp_params()
    state = trainer.init(params)
    _, pullback = trainer.forward(params, state, jnp.ones((2, 4)))
    with pytest.raises(
        ValueError, match="loss_gradients hold no gradient: give the gradient of the loss with respect to the outp"
    ):
        trainer.backward_and_update(params, state, pullback, nothing)


def test_the_step_count_may_be_set_by_hand_at_the_price_of_one_trace():
    traces = []
    optimizer = groups(Adam(), SGD(learning_rate=lambda step: 0.1))

    @jax.jit
    def step(params, state):
        traces.append(None)
        return optimizer.update(params, gradients(1), state)

    for one in (optimizer, Accumulate(optimizer, every=2)):
        optimizer = one
        traces.clear()
        step.clear_cache()
        params, state = PARAMS, optimizer.init(PARAMS)
        params, state = step(*step(params, state))
        inner = state if one.state_type is not type(state) or not hasattr(state, "optimizer") else state.optimizer
        moved = inner._replace(step=5000)
        state = moved if inner is state else state._replace(optimizer=moved)
        for _ in range(4):
            params, state = step(params, state)
        assert len(traces) <= 2


def test_a_float16_leaf_that_nothing_moves_may_hold_infinities():
    """A mask, say; it is not what the step did."""
    params = {"mask": jnp.array([-jnp.inf, 0], jnp.float16), "w": jnp.ones(2, jnp.float16)}
    optimizer = MultiOptimizer({"w": SGD(0.5), "mask": Frozen()}, {"w": "w", "mask": "mask"})
    trainer = MixedPrecisionTrainer(None, optimizer, policy="float16", loss_scale=1.0)
    new, _, success = trainer.update(params, jax.tree.map(jnp.ones_like, params), trainer.init(params))
    assert success
    assert bits(new["mask"]) == bits(params["mask"])
    np.testing.assert_array_equal(new["w"], 0.5)
