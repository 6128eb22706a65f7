"""Clipping as part of an optimizer: the mean of a window, one group by its own norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import PARAMS, gradients, trainer_of
from zoo import bits, groups

from mithril_opt import SGD, Accumulate, Adam, Clip, Frozen, clip_gradients, global_norm


def moved(optimizer, *seeds):
    """By how much plain SGD with rate 1 inside `optimizer` moves the parameters."""
    params, state = PARAMS, optimizer.init(PARAMS)
    for seed in seeds:
        params, state = optimizer.update(params, gradients(seed), state)
    return jax.tree.map(lambda before, after: before - after, PARAMS, params)


@pytest.mark.parametrize("bound", [{"clip_norm": 0.5}, {"clip_value": 0.1}, {"clip_norm": 1e6}])
def test_equals_clipping_before_the_update(bound):
    params, state = Adam().update(PARAMS, clip_gradients(gradients(1), **bound), Adam().init(PARAMS))
    clipped = Clip(Adam(), **bound)
    assert bits(clipped.update(PARAMS, gradients(1), clipped.init(PARAMS))) == bits((params, state))


def test_inside_a_window_it_clips_the_mean_outside_every_gradient():
    inside = moved(Accumulate(Clip(SGD(learning_rate=1.0), clip_norm=0.5), every=4), 1, 2, 3, 4)
    outside = moved(Clip(Accumulate(SGD(learning_rate=1.0), every=4), clip_norm=0.5), 1, 2, 3, 4)
    assert float(global_norm(inside)) == pytest.approx(0.5, rel=1e-5)
    each = [clip_gradients(gradients(seed), clip_norm=0.5) for seed in (1, 2, 3, 4)]
    for actual, *parts in zip(jax.tree.leaves(outside), *map(jax.tree.leaves, each), strict=True):
        np.testing.assert_allclose(actual, np.mean(parts, axis=0), rtol=1e-5, atol=1e-6)


def test_each_group_by_its_own_norm():
    clip = Clip(SGD(learning_rate=1.0), clip_norm=0.5)
    step = moved(groups(clip, clip), 1)
    assert float(global_norm(step["embed"])) == pytest.approx(0.5, rel=1e-5)
    assert float(global_norm(step["body"])) == pytest.approx(0.5, rel=1e-5)


def test_frozen_leaves_do_not_count():
    step = moved(Clip(groups(Frozen(), SGD(learning_rate=1.0)), clip_norm=0.5), 1)
    assert float(global_norm(step)) == pytest.approx(0.5, rel=1e-5)


def test_under_the_trainer_the_mean_of_a_window_is_clipped_after_unscaling():
    optimizer = Accumulate(Clip(SGD(learning_rate=1.0), clip_norm=0.5), every=2)
    trainer = trainer_of(optimizer, loss_scale=2.0**10)
    params, state = PARAMS, trainer.init(PARAMS)
    for seed in (1, 2):
        scaled = jax.tree.map(lambda grad: grad * 2.0**10, gradients(seed))
        params, state, success = trainer.update(params, scaled, state)
    step = jax.tree.map(lambda before, after: before - after, PARAMS, params)
    for actual, expected in zip(jax.tree.leaves(step), jax.tree.leaves(moved(optimizer, 1, 2)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)
    assert bool(success)


def test_a_new_bound_is_not_a_new_trace():
    step = jax.jit(lambda optimizer, state: optimizer.update(PARAMS, gradients(1), state)[0])
    for bound in (0.1, 1.0, jnp.float32(2.0)):
        optimizer = Clip(SGD(), clip_norm=bound)
        step(optimizer, optimizer.init(PARAMS))
    assert step._cache_size() <= 2  # a Python number and an array differ in weak type


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Clip(SGD()), ValueError, "exactly one of clip_norm and clip_value"),
        (lambda: Clip(SGD(), clip_norm=1.0, clip_value=1.0), ValueError, "exactly one of clip_norm and clip_value"),
        (lambda: Clip(SGD(), clip_norm=-1.0), ValueError, r"clip_norm must be a number in \[0"),
        (lambda: Clip("sgd", clip_norm=1.0), TypeError, "optimizer must be an Optimizer"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
