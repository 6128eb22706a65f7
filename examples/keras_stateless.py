"""Keras 3 on JAX: its layers through `stateless_call`, its variables as a list of arrays.

Keras chooses its backend when it is imported, so KERAS_BACKEND=jax must be in the environment before.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras

from mithril_opt import AdamW, CosineAnnealingLR


def main(steps: int = 60) -> list[float]:
    """Train, and return the losses."""
    x = jax.random.uniform(jax.random.key(0), (128, 2), minval=-1.0)
    y = x[:, 0] * x[:, 1]

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(32), keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    # The paths of Keras's variables as the paths of the tree, so that groups and masks can speak of them.
    paths = [variable.path for variable in model.trainable_variables]
    params = {variable.path: variable.value for variable in model.trainable_variables}
    rest = [variable.value for variable in model.non_trainable_variables]
    optimizer = AdamW(learning_rate=CosineAnnealingLR(0.02, T_max=steps), decay_mask=lambda path, leaf: path.endswith("kernel"))

    def loss_fn(params, rest):
        predicted, rest = model.stateless_call([params[path] for path in paths], rest, x, training=True)
        return jnp.mean((predicted[:, 0] - y) ** 2), rest

    @jax.jit
    def step(params, rest, state):
        (loss, rest), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rest)
        return *optimizer.update(params, grads, state), rest, loss

    state, losses = optimizer.init(params), []
    for _ in range(steps):
        params, state, rest, loss = step(params, rest, state)
        losses.append(float(loss))
    for variable in model.trainable_variables:
        variable.assign(params[variable.path])
    for variable, value in zip(model.non_trainable_variables, rest, strict=True):
        variable.assign(value)
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}")
