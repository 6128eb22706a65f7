"""Whole checkpoints of PyTorch, groups, schedules and loss scale, go on here as they did there; and back."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop import assert_close
from oracles import torch_runs as oracle
from torch_checkpoints import (
    DATA,
    NAMES,
    ORDER,
    SCALING,
    TURNED,
    params_of,
    part,
    plateau,
    scaler_of,
    scheduler_of,
    state_dict,
    two_groups,
    warmup,
)
from zoo import bits, specs

from mithril_opt import (
    SGD,
    MixedPrecisionTrainer,
    params_to_torch,
    scaler_to_torch,
    scheduler_to_torch,
    state_from_torch,
    state_to_torch,
)


def loss_fn(params, inputs, targets):
    hidden = jnp.tanh(params["embed"][inputs] @ params["body"]["w"] + params["body"]["b"][None])
    return jnp.mean((hidden @ params["head"]["w"] + params["head"]["b"][None] - targets) ** 2)


def go_on(optimizer, params, state, steps=range(oracle.MIDDLE, oracle.STEPS), observe=False):
    """Parameters, state and the rates of `steps`."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, inputs, targets, metric):
        grads = jax.grad(loss_fn)(params, inputs, targets)
        if isinstance(optimizer, MixedPrecisionTrainer):
            params, state, _ = optimizer.update(params, jax.tree.map(lambda g: g * state.loss_scale.scale, grads), state)
        else:
            params, state = optimizer.update(params, grads, state)
        return params, optimizer.observe(state, metric) if observe else state

    rates = []
    for step in steps:
        rates.append(list(optimizer.get_learning_rate(state).values()))
        params, state = update(params, state, DATA["inputs"][step], DATA["targets"][step], oracle.METRICS[step])
    return params, state, np.array(rates)


# A run goes on.


def continued(run, optimizer, state, **kwargs):
    """The run `run` of PyTorch, continued from `state`, is PyTorch's own to 1e-6."""
    assert specs(state) == specs(optimizer.init(params_of(run)))
    params, state, rates = go_on(optimizer, params_of(run), state, **kwargs)
    assert_close(params, params_of(run, "end"), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rates, DATA[f"{run}/rates"][oracle.MIDDLE :], rtol=1e-6)
    return params, state


def test_two_groups_a_warm_up_and_a_loss_scale_go_on():
    trainer = MixedPrecisionTrainer(None, two_groups(warmup), **SCALING)
    saved = state_dict("warmup")
    state = state_from_torch(trainer, params_of("warmup"), saved, ORDER, TURNED, scaler=scaler_of("warmup"))
    assert (float(state.loss_scale.scale), int(state.loss_scale.good_steps)) == (2048.0, 2)
    _, state = continued("warmup", trainer, state)
    assert [state.loss_scale.scale.item(), state.loss_scale.good_steps.item()] == DATA["warmup/scale"][-1].tolist()
    assert int(state.optimizer.step) == oracle.STEPS


def test_updates_that_the_scaler_skipped_move_their_schedule_only():
    params, saved, scaler = params_of("skipped"), state_dict("skipped"), scaler_of("skipped")
    trainer = MixedPrecisionTrainer(None, two_groups(warmup), **SCALING)
    with pytest.raises(ValueError, match=r"after 5 updates 'body/b' has lr = 0.021 in PyTorch, but 0.018"):
        state_from_torch(trainer, params, saved, ORDER, TURNED, scaler=scaler)
    trainer = MixedPrecisionTrainer(None, two_groups(lambda peak: lambda k: warmup(peak)(k + 1)), **SCALING)
    continued("skipped", trainer, state_from_torch(trainer, params, saved, ORDER, TURNED, scaler=scaler))


def test_a_plateau_goes_on():
    optimizer = two_groups(plateau)
    saved, scheduler = state_dict("plateau"), scheduler_of("plateau")
    state = state_from_torch(optimizer, params_of("plateau"), saved, ORDER, TURNED, scheduler=scheduler)
    continued("plateau", optimizer, state, observe=True)


def test_two_optimizers_of_different_rules_go_on():
    optimizer = two_groups(warmup, rest=SGD)
    saved = {"adamw": state_dict("two_optimizers"), "sgd": state_dict("two_optimizers", 1)}
    params = params_of("two_optimizers")
    state = state_from_torch(optimizer, params, saved, ORDER, TURNED)
    assert bits(state_to_torch(optimizer, params, state, saved, ORDER, TURNED)) == bits(saved)
    continued("two_optimizers", optimizer, state)


# And back.


@pytest.mark.parametrize("run", ["warmup", "plateau"])
def test_there_and_back_is_the_identity(run):
    rate, kwargs = {"warmup": (warmup, {}), "plateau": (plateau, {"scheduler": scheduler_of("plateau")})}[run]
    optimizer, params, saved = two_groups(rate), params_of(run), state_dict(run)
    state = state_from_torch(optimizer, params, saved, ORDER, TURNED, **kwargs)
    assert bits(state_to_torch(optimizer, params, state, saved, ORDER, TURNED)) == bits(saved)
    model = part(f"{run}/model/")
    assert bits(params_to_torch(params, {**model, "buffer": np.ones(3)}, NAMES, TURNED)) == bits(
        {**model, "buffer": np.ones(3)}
    )


def test_our_run_gives_torch_rates_scale_and_memory():
    """From torch's middle on; what torch is given must say where ours is."""
    optimizer, run = two_groups(plateau), "plateau"
    trainer = MixedPrecisionTrainer(None, optimizer, **SCALING)
    given = {"scheduler": scheduler_of(run), "scaler": scaler_of("warmup")}
    state = state_from_torch(trainer, params_of(run), state_dict(run), ORDER, TURNED, **given)
    params, state, _ = go_on(trainer, params_of(run), state, range(oracle.MIDDLE, oracle.MIDDLE + 3), observe=True)
    fresh = {**state_dict(run), "state": {}}
    groups = state_to_torch(trainer, params, state, fresh, ORDER, TURNED)["param_groups"]
    np.testing.assert_allclose([group["lr"] for group in groups], [0.0025, 0.0075], rtol=1e-6)
    assert scaler_to_torch(state, scaler_of("warmup")) == {**scaler_of("warmup"), "scale": 4096.0, "_growth_tracker": 1}
    seen = scheduler_to_torch(state, scheduler_of(run))
    assert seen == {**scheduler_of(run), "best": np.float32(0.8), "num_bad_epochs": 1, "cooldown_counter": 0}
    assert scheduler_to_torch(trainer.init(params), scheduler_of(run))["best"] == math.inf


@pytest.mark.parametrize("run", ["warmup", "plateau"])
def test_torch_itself_goes_on_where_ours_was(run):
    torch = pytest.importorskip("torch")
    rate, kwargs = {"warmup": (warmup, {}), "plateau": (plateau, {"scheduler": scheduler_of("plateau")})}[run]
    optimizer, between = two_groups(rate), oracle.MIDDLE + 3
    trainer = MixedPrecisionTrainer(None, optimizer, **SCALING)
    scaler = {**scaler_of("warmup")}
    state = state_from_torch(trainer, params_of(run), state_dict(run), ORDER, TURNED, scaler=scaler, **kwargs)
    steps = range(oracle.MIDDLE, between)
    params, state, _ = go_on(trainer, params_of(run), state, steps, observe=run == "plateau")

    theirs = oracle.Run(run)
    model = params_to_torch(params, theirs.model.state_dict(), NAMES, TURNED)
    theirs.model.load_state_dict({name: torch.as_tensor(value) for name, value in model.items()})
    moved = state_to_torch(trainer, params, state, theirs.optimizers[0].state_dict(), ORDER, TURNED)
    theirs.optimizers[0].load_state_dict(jax.tree.map(lambda x: torch.from_numpy(x) if isinstance(x, np.ndarray) else x, moved))
    fresh = theirs.schedulers[0].state_dict()
    if run == "plateau":
        theirs.schedulers[0].load_state_dict(scheduler_to_torch(state, fresh))
    else:
        theirs.schedulers[0].load_state_dict({**fresh, "last_epoch": int(state.optimizer.step)})
        theirs.scaler.load_state_dict(scaler_to_torch(state, theirs.scaler.state_dict()))
    for step in range(between, oracle.STEPS):
        rates, scale = theirs.step(step, DATA["inputs"][step], DATA["targets"][step])
        np.testing.assert_allclose(rates, DATA[f"{run}/rates"][step], rtol=1e-6)
    assert run == "plateau" or list(scale) == DATA["warmup/scale"][-1].tolist()
    assert_close(theirs.params(), part(f"{run}/end/"), rtol=1e-6, atol=1e-6)
