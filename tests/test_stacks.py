"""A stack of layers whose axis is declared trains as its layers do apart, for every rule that reduces over a leaf.

The layers differ in size by decades, so that a norm or a mean over all of them would be another number.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mithril_opt import LAMB, LARS, Adafactor, AdamW

COUNT = 3
RULES = {
    "lamb": functools.partial(LAMB, 0.05, weight_decay=0.1),
    "lamb-bounded": functools.partial(LAMB, 0.05, trust_max=0.5),
    "lars": functools.partial(LARS, 1.0, trust_coefficient=0.05, weight_decay=0.1, epsilon=0.1),
    "lars-nesterov": functools.partial(LARS, 1.0, trust_coefficient=0.05, nesterov=True),
    "adafactor": functools.partial(Adafactor, 0.05, weight_decay=0.1),
    "adafactor-factored": functools.partial(Adafactor, 0.05, min_dim_size_to_factor=3),
    "adafactor-momentum": functools.partial(Adafactor, 0.05, beta1=0.9, update_clip=0.5, min_dim_size_to_factor=3),
    "adamw-cautious": functools.partial(AdamW, 0.05, cautious=True),
    "adamw-bounded": functools.partial(AdamW, 0.05, beta2=0.9, update_clip=0.5),
    "adamw-everything": functools.partial(
        AdamW, 0.05, nesterov=True, cautious=True, cautious_decay=True, beta2=0.9, update_clip=0.75
    ),
}


@functools.cache
def layers(dtype, seed):
    """A kernel and a bias of each of the layers."""
    normal, imaginary = np.random.default_rng(seed).normal, 1j if dtype == "complex64" else 0
    array = lambda shape: (normal(size=shape) + imaginary * normal(size=shape)).astype(dtype)  # noqa: E731
    return [{"kernel": array((5, 4)) * size, "bias": array((4,)) * size} for size in np.float32([0.1, 1.0, 10.0])]


def train(optimizer, trees):
    """The parameters after 8 updates, given them and the gradients."""
    params, update = trees(0), jax.jit(optimizer.update)
    state = optimizer.init(params)
    for seed in range(1, 9):
        params, state = update(params, trees(seed), state)
    return params


def stacked(trees, axis):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)


@pytest.mark.parametrize(("axis", "dtype"), [(0, "float32"), (1, "float32"), (-1, "float32"), (0, "complex64")])
@pytest.mark.parametrize("rule", RULES)
def test_a_stack_of_layers_equals_the_layers(rule, axis, dtype):
    apart = stacked(train(RULES[rule](), lambda seed: layers(dtype, seed)), axis)
    together = train(RULES[rule](unit_axes=axis), lambda seed: stacked(layers(dtype, seed), axis))
    for name, leaf in apart.items():
        np.testing.assert_allclose(together[name], leaf, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rule", RULES)
def test_two_axes_may_count_layers(rule):
    twice = lambda seed: jax.tree.map(lambda leaf: jnp.stack([leaf, 3 * leaf], 1), stacked(layers("float32", seed), 0))  # noqa: E731
    flat = lambda seed: jax.tree.map(lambda leaf: leaf.reshape(2 * COUNT, *leaf.shape[2:]), twice(seed))  # noqa: E731
    together, once = train(RULES[rule](unit_axes=(1, 0)), twice), train(RULES[rule](unit_axes=0), flat)
    for name, leaf in once.items():
        np.testing.assert_allclose(together[name].reshape(leaf.shape), leaf, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rule", RULES)
def test_without_the_axis_a_stack_is_one_layer(rule):
    apart = stacked(train(RULES[rule](), lambda seed: layers("float32", seed)), 0)
    together = train(RULES[rule](), lambda seed: stacked(layers("float32", seed), 0))
    assert all(np.max(np.abs(together[name] - apart[name])) > 1e-3 for name in apart)
