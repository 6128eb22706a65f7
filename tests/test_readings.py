"""The trainer speaks for its optimizer: rates, metrics of schedules, evaluation parameters, and what to log."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import PARAMS, drive, gradients, scaled, trainer_of
from zoo import PLATEAU, WARMUP, bits, groups, specs

from mithril_opt import EMA, SGD, Accumulate, Adam, Clip, Frozen, global_norm

OPTIMIZERS = {
    "rule": lambda: SGD(learning_rate=PLATEAU),
    "groups": lambda: groups(Adam(learning_rate=PLATEAU), SGD(learning_rate=WARMUP)),
    "wrapped": lambda: EMA(Clip(Accumulate(SGD(learning_rate=PLATEAU), every=1), clip_norm=1.0), decay=0.5),
}


@pytest.fixture(params=OPTIMIZERS, name="optimizer")
def fixture_optimizer(request):
    return OPTIMIZERS[request.param]()


def test_what_the_optimizer_says_of_its_state(optimizer):
    trainer = trainer_of(optimizer, loss_scale=2.0)
    params, state, *_ = drive(trainer, "TTTTT")
    assert bits(trainer.get_learning_rate(state)) == bits(optimizer.get_learning_rate(state.optimizer))
    assert trainer.learning_rates(state) == optimizer.learning_rates(state.optimizer)
    assert bits(trainer.eval_params(params, state)) == bits(optimizer.eval_params(params, state.optimizer))
    observed = state
    for metric in (1.0, 2.0, 3.0, 4.0):
        observed = jax.jit(trainer.observe)(observed, metric)
    assert specs(observed) == specs(state)
    assert bits(observed.loss_scale) == bits(state.loss_scale)
    before, after = ([float(rate) for rate in trainer.learning_rates(s).values()] for s in (state, observed))
    assert before[0] > after[0]


def test_eval_params_hand_passengers_back():
    trainer = trainer_of(EMA(SGD(learning_rate=1.0), decay=0.5), loss_scale=1.0)
    params = {"w": jnp.ones(2), "n": 3, "f": jnp.tanh}
    grads = {"w": jnp.ones(2), "n": None, "f": None}
    params, state, _ = trainer.update(params, grads, trainer.init(params))
    evaluated = trainer.eval_params(params, state)
    np.testing.assert_array_equal(evaluated["w"], [0.5, 0.5])
    assert (evaluated["n"], evaluated["f"]) == (3, jnp.tanh)


@pytest.mark.parametrize("policy", ["float16", "float32"])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_the_norm_of_the_gradients_is_unscaled_and_before_clipping(policy, clip_norm):
    trainer = trainer_of(policy=policy, clip_norm=clip_norm, loss_scale=2.0**9)
    state = trainer.init(PARAMS)
    assert float(trainer.metrics(state)["grad_norm"]) == 0.0
    for seed in (1, 2):
        _, state, _ = jax.jit(trainer.update)(PARAMS, scaled(trainer, gradients(seed), state), state)
        assert float(trainer.metrics(state)["grad_norm"]) == pytest.approx(float(global_norm(gradients(seed))), rel=1e-6)


def test_the_norm_of_a_step_that_overflows_is_not_finite():
    trainer = trainer_of(loss_scale=2.0)
    _, state, *_ = drive(trainer, "TF")
    assert not np.isfinite(trainer.metrics(state)["grad_norm"])
    assert np.isfinite(trainer.metrics(drive(trainer, "T", PARAMS, state)[1])["grad_norm"])


def test_the_norm_after_bad_input_is_the_last_one():
    trainer = trainer_of(loss_scale=2.0)
    _, good, *_ = drive(trainer, "T")
    _, state, *_ = drive(trainer, "TN")
    assert trainer.metrics(state)["grad_norm"] == trainer.metrics(good)["grad_norm"] > 0


def test_frozen_groups_do_not_count_in_the_norm():
    trainer = trainer_of(groups(Frozen(), SGD()), loss_scale=2.0)
    _, state, *_ = drive(trainer, "T")
    assert float(trainer.metrics(state)["grad_norm"]) == pytest.approx(float(global_norm(gradients(1)["body"])), rel=1e-6)


def test_the_counts():
    trainer = trainer_of(loss_scale=2.0)
    _, state, *_ = drive(trainer, "TTFNTLF")
    metrics = {name: float(value) for name, value in trainer.metrics(state).items()}
    counts = ("attempts", "skipped", "bad_input", "consecutive_skips", "good_steps", "loss_scale")
    assert [metrics[name] for name in counts] == [7, 4, 2, 2, 0, 1.0]
    assert set(metrics) == {*counts, "grad_norm"}
    for name in metrics:
        assert f"`{name}`" in trainer.metrics.__doc__


@pytest.mark.parametrize("call", ["get_learning_rate", "learning_rates", "observe", "eval_params", "metrics", "recorded"])
def test_the_optimizers_own_state_is_not_the_trainers(call):
    trainer = trainer_of(Adam())
    arguments = {"observe": (Adam().init(PARAMS), 1.0), "eval_params": (PARAMS, Adam().init(PARAMS))}
    with pytest.raises(ValueError, match="state must be what the trainer's init returned, got OptState"):
        getattr(trainer, call)(*arguments.get(call, (Adam().init(PARAMS),)))
