"""flax linen with its `TrainState`, which takes an optax transformation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.training.train_state import TrainState

from mithril_opt import AdamW, LinearWarmupScheduler, to_optax


class Model(nn.Module):
    """A perceptron."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(32)(x)))[:, 0]


def main(steps: int = 60) -> list[float]:
    """Train, and return the losses."""
    x = jax.random.uniform(jax.random.key(0), (128, 2), minval=-1.0)
    y = x[:, 0] * x[:, 1]

    model = Model()
    optimizer = AdamW(learning_rate=LinearWarmupScheduler(5, 0.0, 0.02), weight_decay=0.01)
    params = model.init(jax.random.key(1), x)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=to_optax(optimizer))

    @jax.jit
    def step(state):
        loss, grads = jax.value_and_grad(lambda params: jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2))(
            state.params
        )
        return state.apply_gradients(grads=grads), loss

    losses = []
    for _ in range(steps):
        state, loss = step(state)
        losses.append(float(loss))
    assert optimizer.get_learning_rate(state.opt_state) == jnp.float32(0.02)
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}")
