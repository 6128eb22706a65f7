"""Overflows that really happen, and whose fault they are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import PARAMS, batch, drive, mlp, mlp_params, spoil, squared_error, trainer_of
from zoo import bits, specs

from mithril_opt import (
    SGD,
    Accumulate,
    AdaGrad,
    Adam,
    AdamW,
    Frozen,
    MultiOptimizer,
    Optimizer,
    RMSProp,
    global_norm,
    pytree,
)


class NormalizedState(NamedTuple):
    calls: jax.Array
    norms: list[jax.Array]


@pytree
class Normalized(Optimizer):
    """A rule for the whole tree, with a state of its own, as a user writes it: gradient descent with steps of unit length."""

    learning_rate: float = 0.05

    def init(self, params):
        return NormalizedState(jnp.zeros((), jnp.int32), [jnp.zeros(())])

    state_type = NormalizedState

    def compute_updates(self, params, grads, state):
        norm = global_norm(grads)
        return jax.tree.map(lambda grad: -self.learning_rate * grad / norm, grads), NormalizedState(state.calls + 1, [norm])


BATCHES = jax.tree.map(lambda *leaves: np.stack(leaves), *[batch(seed) for seed in range(120)])


@jax.jit
def loop(trainer, params, state, batches):
    """Whole steps, one per batch."""

    def body(carry, batch):
        params, state = carry
        (loss, _), grads = trainer.value_and_grad(squared_error, has_aux=True)(params, state, *batch)
        params, state, success = trainer.update(params, grads, state, loss=loss)
        return (params, state), (loss, success)

    return jax.lax.scan(body, (params, state), batches)


def train(trainer, factor=1.0):
    """Parameters and state after 120 steps, and the loss of each and whether it was committed."""
    batches = jax.tree.map(lambda leaf: leaf * np.float32(factor), BATCHES)
    carry, history = loop(trainer, mlp_params(), trainer.init(mlp_params()), batches)
    return *carry, *history


# Real overflows.


def test_real_overflows_of_the_backward_pass_are_skipped_and_training_goes_on():
    """At 2²⁴ the gradients of the outputs exceed 65504 in float16; the scale comes down to where they do not."""
    trainer = trainer_of(Adam(learning_rate=0.02), loss_scale=2.0**24, growth_interval=20)
    params, state, losses, success = train(trainer)
    skipped = int(state.loss_scale.skipped)
    assert not success[:4].any()
    assert 5 <= skipped < 30
    assert int(state.loss_scale.bad_input) == 0
    assert int(state.optimizer.step) == 120 - skipped == int(success.sum())
    assert np.isfinite(losses).all()
    assert losses[-20:].mean() < 0.1 * losses[:20].mean()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))
    assert (losses[:5] == jnp.stack([squared_error(*half((mlp_params(), *batch(i))))[0] for i in range(5)])).all()


def half(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), tree)


def test_real_overflows_of_the_forward_pass_are_the_batchs_fault():
    """Activations beyond 65504: the loss is not finite at any scale, so lowering the scale would not help."""
    trainer = trainer_of(Adam(learning_rate=0.02))
    params, state, losses, success = train(trainer, factor=60000.0)
    assert not success.any()
    assert not np.isfinite(losses).any()
    assert bits(params) == bits(mlp_params())
    assert bits(state.optimizer) == bits(trainer.optimizer.init(params))
    assert (float(state.loss_scale.scale), int(state.loss_scale.bad_input)) == (2.0**15, 120)


@pytest.mark.parametrize("policy", ["bfloat16", "float32"])
def test_wide_exponents_need_no_scale(policy):
    trainer = trainer_of(Adam(learning_rate=0.02), policy=policy)
    _, state, losses, success = train(trainer)
    assert success.all()
    assert losses[-20:].mean() < 0.15 * losses[:20].mean()
    assert float(state.loss_scale.scale) == 1.0


TRAINABLE = {
    "sgd": SGD(learning_rate=0.05, momentum=0.9),
    "adam": Adam(learning_rate=0.02),
    "adamw": AdamW(learning_rate=0.02),
    "rmsprop": RMSProp(learning_rate=0.01),
    "adagrad": AdaGrad(learning_rate=0.2),
    "multi": MultiOptimizer({"a": AdamW(learning_rate=0.02), "b": SGD(learning_rate=0.05)}, groups={"a": "w*", "b": ...}),
    "frozen": MultiOptimizer({"a": Adam(learning_rate=0.03), "b": Frozen()}, groups={"a": "w2", "b": ...}),
    "accumulate": Accumulate(Adam(learning_rate=0.05), every=2),
    "accumulate-multi": Accumulate(MultiOptimizer({"a": Adam(learning_rate=0.05), "b": Frozen()}, {"a": "w*", "b": ...}), 2),
    "multi-accumulate": MultiOptimizer(
        {"a": Accumulate(Adam(learning_rate=0.05), 2), "b": Accumulate(Adam(), 2)}, {"a": "w*", "b": ...}
    ),
    "custom": Normalized(),
}


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_kind_of_optimizer_trains_through_real_overflows(name):
    trainer = trainer_of(TRAINABLE[name], loss_scale=2.0**20, clip_norm=10.0)
    params, state, losses, success = train(trainer)
    assert int(state.loss_scale.skipped) >= 3
    assert not success[0]
    assert losses[-20:].mean() < 0.5 * losses[:10].mean()
    assert specs(state) == specs(trainer.init(params))
    if "frozen" in name:
        assert bits(params["w1"]) == bits(mlp_params()["w1"])


# Blame.


@pytest.mark.parametrize("letter", "NL")
def test_two_hundred_bad_batches_do_not_touch_the_scale(letter):
    trainer = trainer_of(Adam(learning_rate=0.1), growth_interval=50)
    start, state, *_ = drive(trainer, "TTT")
    params, after, _, success = drive(trainer, letter * 200, start, state)
    assert not success.any()
    assert bits((params, after.optimizer)) == bits((start, state.optimizer))
    scale = after.loss_scale
    assert (float(scale.scale), int(scale.good_steps)) == (2.0**15, 3)
    assert (int(scale.skipped), int(scale.bad_input), int(scale.consecutive_skips), int(scale.attempts)) == (200, 200, 200, 203)
    clean = drive(trainer, "T", params, after)
    undisturbed = drive(trainer, "T", start, state)
    assert bits((clean[0], clean[1].optimizer)) == bits((undisturbed[0], undisturbed[1].optimizer))


def test_without_a_loss_it_is_the_scale_that_is_blamed():
    trainer = trainer_of()
    grads = spoil(PARAMS, jnp.nan)
    *_, state, success = trainer.update(PARAMS, grads, trainer.init(PARAMS))
    assert (float(state.loss_scale.scale), int(state.loss_scale.bad_input), bool(success)) == (2.0**14, 0, False)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_loss_gradients_that_are_not_finite_are_the_batchs_fault(bad):
    trainer = trainer_of(SGD(learning_rate=0.1), mlp)
    params = mlp_params()
    state = trainer.init(params)
    outputs, pullback = trainer.forward(params, state, batch()[0])
    gradients = jnp.ones_like(outputs).at[-1, -1].set(bad)
    new_params, new_state, success = trainer.backward_and_update(params, state, pullback, gradients)
    assert bits((new_params, new_state.optimizer)) == bits((params, state.optimizer))
    scale = new_state.loss_scale
    assert (float(scale.scale), int(scale.bad_input), int(scale.skipped), bool(success)) == (2.0**15, 1, 1, False)
