"""What the trainer reports, and what it says when training is stuck or the input is wrong."""

import re

import jax
import jax.numpy as jnp
import pytest
from steps import PARAMS, drive, trainer_of
from zoo import bits

from mithril_opt import SGD, Accumulate, Frozen, LossScaleStuckError, MixedPrecisionTrainer, MultiOptimizer, TrainerState

# Metrics, check.


def test_metrics():
    trainer = trainer_of(growth_interval=5)
    _, state, *_ = drive(trainer, "TFTTNN")
    metrics = trainer.metrics(state)
    assert {name: float(value) for name, value in metrics.items() if name != "grad_norm"} == {
        "loss_scale": 2.0**14, "good_steps": 2, "consecutive_skips": 2, "skipped": 3, "bad_input": 2, "attempts": 6
    }  # fmt: skip
    assert all(jnp.shape(value) == () for value in metrics.values())
    assert jax.jit(trainer.metrics)(state).keys() == metrics.keys()


HEALTHY = [
    ("no-step-yet", {}, ""),
    ("finite", {}, "TTT"),
    ("one-skip-at-the-minimum", dict(loss_scale=1.0), "TF"),
    ("many-skips-above-the-minimum", {}, "F" * 14),
    ("recovered", dict(loss_scale=1.0), "FFFFT"),
    ("bad-batches-above-the-minimum", {}, "N" * 20),
    ("one-overflow-at-a-static-scale", dict(dynamic_loss_scaling=False), "TTFT"),
    ("one-bad-batch-in-bfloat16", dict(policy="bfloat16"), "TTF"),
    # A window is one update: it is dropped once, however many steps it has.
    ("one-dropped-window", dict(optimizer=Accumulate(SGD(), 4), policy="bfloat16"), "FTTT"),
]
STUCK = [
    ("overflows", {}, "T" + "F" * 17, 17, "the first non-finite gradient is that of 'body/w'; of 18 steps 17 were skipped"),
    ("at-the-minimum", dict(loss_scale=1.0), "TFF", 2, "of 3 steps 2 were skipped, 0 of them"),
    ("below-one", dict(min_loss_scale=0.1, loss_scale=0.1), "FFF", 3, "at a loss scale of 0.1, which cannot go lower"),
    ("bad-batches", dict(loss_scale=1.0), "TLL", 2, "the gradients are finite; what is not is the loss, a number of the opt"),
    ("static", dict(dynamic_loss_scaling=False, loss_scale=1000.1), "FF", 2, "at a loss scale of 1000.1, which"),
    ("bfloat16", dict(policy="bfloat16"), "NNN", 3, "that of 'body/w'; of 3 steps 3 were skipped, 3 of them through no"),
    ("windows", dict(optimizer=Accumulate(SGD(), 2), policy="bfloat16"), "FTFT", 2, "of 4 steps 4 were skipped"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "letters"), HEALTHY)
def test_check_is_silent_when_training_is_not_stuck(name, settings, letters):
    trainer = trainer_of(**settings)
    state = drive(trainer, letters)[1] if letters else trainer.init(PARAMS)
    trainer.check(state, PARAMS)


@pytest.mark.parametrize(("name", "settings", "letters", "skips", "message"), STUCK)
def test_check_names_the_culprit_and_the_counts(name, settings, letters, skips, message):
    trainer = trainer_of(**settings)
    _, state, *_ = drive(trainer, letters)
    with pytest.raises(LossScaleStuckError, match=f"the last {skips} updates were skipped.*{re.escape(message)}"):
        trainer.check(state, PARAMS)


@pytest.mark.parametrize("culprit", ["a", "b/0", "c", "d/x/w"])
def test_the_leaf_is_found_among_passengers_missing_gradients_and_frozen_groups(culprit):
    """The position counts the parameters that train, whether or not they have a gradient."""
    params = {"a": jnp.ones(2), "b": [jnp.ones(3), 7], "c": jnp.ones(()), "d": {"w": "relu", "x": {"w": jnp.ones((2, 2))}}}
    params |= {"aa": jnp.ones(2), "bb": jnp.ones(2), "n": 3}
    optimizer = MultiOptimizer({"train": SGD(), "still": Frozen()}, groups={"train": ..., "still": "bb"})
    trainer = trainer_of(optimizer, loss_scale=1.0)
    state = trainer.init(params)
    grads = {**jax.tree.map(lambda leaf: leaf, params), "aa": None, "bb": jnp.full(2, jnp.nan)}
    grads["d"]["x"] = {"w": jnp.full((2, 2), jnp.inf)}
    if culprit != "d/x/w":
        first, *rest = culprit.split("/")
        spoiled = jax.tree.map(lambda leaf: leaf * jnp.inf, grads[first][0] if rest else grads[first])
        grads[first] = [spoiled, 7] if rest else spoiled
    for _ in range(2):
        _, state, _ = trainer.update(params, grads, state)
    with pytest.raises(LossScaleStuckError, match=f"'{culprit}'"):
        trainer.check(state, params)


# Bad input: clear errors, at construction or when traced.

MODEL_TRAINER = trainer_of(model=lambda params, x: {"y": params["w"] * x})
W = {"w": jnp.ones(3)}
W_STATE = MODEL_TRAINER.init(W)
_, PULLBACK = MODEL_TRAINER.forward(W, W_STATE, jnp.ones(3))


def backward(params=W, state=W_STATE, pullback=PULLBACK, gradients=None):
    return MODEL_TRAINER.backward_and_update(params, state, pullback, {"y": jnp.ones(3)} if gradients is None else gradients)


def value(loss_fn, **options):
    return MODEL_TRAINER.value_and_grad(loss_fn, **options)(W, W_STATE)


BAD_CALLS = {
    "optimizer-class": (lambda: trainer_of(SGD), TypeError, "optimizer must be an Optimizer, got <class"),
    "optimizer-in-place-of-the-model": (lambda: MixedPrecisionTrainer(SGD(), SGD()), TypeError, "model must be a function"),
    "no-model": (lambda: trainer_of().forward(W, W_STATE, 1.0), ValueError, "forward needs a model"),
    "pullback-of-other-params": (
        lambda: backward(params={"v": jnp.ones(3)}),
        ValueError,
        r"at 'v' the parameter is float32\[3\] but there is no gradient",
    ),
    "pullback-of-another-shape": (
        lambda: backward(params={"w": jnp.ones((3, 1))}),
        ValueError,
        r"at 'w' the parameter is float32\[3,1\] but the gradient is float32\[3\]",
    ),
    "no-pullback": (lambda: backward(pullback=jnp.ones(3)), ValueError, "pullback must be what the trainer's forward returned"),
    "loss-gradients-of-another-structure": (
        lambda: backward(gradients={"z": jnp.ones(3)}),
        ValueError,
        r"at 'y' the output is float32\[3\] but there is no loss gradient",
    ),
    "loss-gradients-of-another-shape": (
        lambda: backward(gradients={"y": jnp.ones(())}),
        ValueError,
        r"at 'y' the output is float32\[3\] but the loss gradient is float32\[\]",
    ),
    "integer-loss-gradients": (
        lambda: backward(gradients={"y": jnp.arange(3)}),
        ValueError,
        r"at 'y' the output is float32\[3\] but the loss gradient is int32\[3\]",
    ),
    "integer-gradients": (
        lambda: MODEL_TRAINER.update(W, {"w": jnp.arange(3)}, W_STATE),
        ValueError,
        r"at 'w' the parameter is float32\[3\] but the gradient is int32\[3\]",
    ),
    "complex-gradients": (
        lambda: MODEL_TRAINER.update(W, {"w": jnp.ones(3, jnp.complex64)}, W_STATE),
        ValueError,
        r"but the gradient is complex64\[3\]",
    ),
    "gradients-of-another-structure": (
        lambda: MODEL_TRAINER.update(W, [jnp.ones(3)], W_STATE),
        ValueError,
        r"at 'w' the parameter is float32\[3\] but there is no gradient",
    ),
    "optimizers-state": (
        lambda: MODEL_TRAINER.update(W, W, W_STATE.optimizer),
        ValueError,
        "state must be what the trainer's init returned, got OptState",
    ),
    "arguments-swapped": (lambda: MODEL_TRAINER.update(W, W_STATE, W), ValueError, "this looks like optax.s order"),
    "state-of-another-optimizer": (
        lambda: MODEL_TRAINER.update(W, W, TrainerState(Accumulate(SGD(), 2).init(W), W_STATE.loss_scale)),
        ValueError,
        "SGD.update takes the state that init returned .* got AccumulateState",
    ),
    "no-state": (
        lambda: MODEL_TRAINER.value_and_grad(lambda p: 1.0)(W, W),
        ValueError,
        "state must be what the trainer's init returned, got dict",
    ),
    "state-in-metrics": (lambda: MODEL_TRAINER.metrics(W), ValueError, "state must be what"),
    "state-in-check": (lambda: MODEL_TRAINER.check(W, W), ValueError, "state must be what"),
    "vector-loss": (lambda: value(lambda p: p["w"]), TypeError, r"must be a real floating scalar, got float16\[3\]"),
    "python-loss": (lambda: value(lambda p: 1.0), TypeError, r"loss_fn returned the Python number 1\.0 as the loss"),
    "integer-loss": (lambda: value(lambda p: jnp.int32(1)), TypeError, r"must be a real floating scalar, got int32\[\]"),
    "complex-loss": (lambda: value(lambda p: jnp.complex64(1)), TypeError, r"a real floating scalar, got complex64\[\]"),
    "aux-without-has-aux": (lambda: value(lambda p: (1.0, {"a": 2})), TypeError, "a real floating scalar, got tuple"),
    "no-aux": (
        lambda: value(lambda p: p["w"][0].astype(jnp.float32), has_aux=True),
        TypeError,
        r"loss_fn must return a pair \(loss, aux\), got float32\[\]",
    ),
    "argnums": (lambda: value(lambda p: 1.0, argnums=(0, 1)), ValueError, r"argnums is \(0, 1\), but loss_fn is given 1 pos"),
    "pair-as-loss": (
        lambda: MODEL_TRAINER.update(W, W, W_STATE, loss=(1.0, {})),
        TypeError,
        "loss must be a real .* got tuple",
    ),
    "vector-as-loss": (
        lambda: MODEL_TRAINER.update(W, W, W_STATE, loss=jnp.ones(2)),
        TypeError,
        r"loss must be .*float32\[2\]",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input(name):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()
    assert bits(W) == bits({"w": jnp.ones(3)})
    assert bits(W_STATE) == bits(MODEL_TRAINER.init(W))
