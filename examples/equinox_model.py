"""equinox: the model itself is the tree of parameters; its functions and integers pass through."""

import equinox as eqx
import jax
import jax.numpy as jnp

from mithril_opt import AdamW


class Model(eqx.Module):
    """A perceptron with a function, a count and a table of integers among its leaves."""

    layers: list
    activation: object
    calls: int
    table: jax.Array

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.layers = [eqx.nn.Linear(2, 32, key=first), eqx.nn.Linear(32, "scalar", key=second)]
        self.activation, self.calls, self.table = jax.nn.relu, 3, jnp.arange(4)

    def __call__(self, x):
        return self.layers[1](self.activation(self.layers[0](x)))


def main(steps: int = 60) -> list[float]:
    """Train, and return the losses."""
    x = jax.random.uniform(jax.random.key(0), (128, 2), minval=-1.0)
    y = x[:, 0] * x[:, 1]

    model = Model(jax.random.key(1))
    optimizer = AdamW(learning_rate=0.02, decay_mask=lambda path, leaf: path.endswith("weight"))
    state = optimizer.init(model)

    @eqx.filter_jit(donate="all")
    def step(model, state):
        loss, grads = eqx.filter_value_and_grad(lambda model: jnp.mean((jax.vmap(model)(x) - y) ** 2))(model)
        return *optimizer.update(model, grads, state), loss

    losses = []
    for _ in range(steps):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert (model.activation, model.calls) == (jax.nn.relu, 3)
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}")
