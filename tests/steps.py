"""Training steps that go wrong on demand: one letter per step.

T  the gradients are finite
F  an element of the first gradient overflowed
N  the loss is NaN, and so are the gradients
L  the loss is NaN, the gradients are finite
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from zoo import make_params

from mithril_opt import SGD, MixedPrecisionTrainer

LETTERS = {"T": (0.0, 1.0), "F": (np.inf, 1.0), "N": (np.nan, np.nan), "L": (0.0, np.nan)}


def trainer_of(optimizer=None, model=None, **settings):
    """A trainer, with plain SGD unless another optimizer is given."""
    return MixedPrecisionTrainer(model, SGD(learning_rate=0.5) if optimizer is None else optimizer, **settings)


def spoil(grads, value=jnp.inf):
    """`grads` with `value` in the first element of the first leaf."""
    leaves, structure = jax.tree.flatten(grads)
    return structure.unflatten([leaves[0].ravel().at[0].set(value).reshape(leaves[0].shape), *leaves[1:]])


def scaled(trainer, grads, state):
    """`grads` as a backward pass under the loss scale of `state` would give them."""
    scale = state.loss_scale.scale if trainer.policy.needs_loss_scaling else jnp.float32(1)
    return jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), grads)


def step(trainer, params, state, grads, error, loss):
    """A step with `grads`, to whose first element `error` is added."""
    first = jax.tree.leaves(grads)[0].ravel()[0]
    return trainer.update(params, scaled(trainer, spoil(grads, first + error), state), state, loss=loss)


any_step = jax.jit(step)  # the trainer is an argument: compiled once for all settings of it


@functools.cache
def gradients(seed):
    """A part of the zoo's tree: half the leaves take half the time to compile."""
    tree = make_params(seed=seed)
    return {"embed": tree["embed"], "body": {"w": tree["body"]["w"]}}


PARAMS = gradients(0)


def drive(trainer, letters, params=None, state=None, seed=1):
    """Train with one step per letter, on other gradients in every step.

    Returns:
        Parameters, state, and of each step the loss-scale state after it and whether it succeeded, as stacked arrays.
    """
    params = PARAMS if params is None else params
    state = trainer.init(params) if state is None else state
    history = []
    for i, letter in enumerate(letters):
        params, state, success = any_step(trainer, params, state, gradients(seed + i), *LETTERS[letter])
        history.append((state.loss_scale, success))
    return params, state, *jax.tree.map(lambda *leaves: np.stack(leaves), *history)


# A two-layer perceptron and its data.


def mlp(params, x):
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"]


def mlp_params(seed=0):
    normal = np.random.default_rng(seed).normal
    shapes = {"w1": (4, 16), "b1": (16,), "w2": (16, 2)}
    return {name: jnp.asarray(normal(size=shape) / np.sqrt(shape[0]), jnp.float32) for name, shape in shapes.items()}


def batch(seed=0):
    x = np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.stack([x.sum(1), x[:, 0] * 2], axis=1))


def squared_error(params, x, y):
    outputs = mlp(params, x).astype(jnp.float32)
    return jnp.mean((outputs - y.astype(jnp.float32)) ** 2), outputs
