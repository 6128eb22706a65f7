"""flax nnx the functional way: the model's parameters are a tree like any other, the rest of it goes along."""

import jax
import jax.numpy as jnp
from flax import nnx

from mithril_opt import AdamW, MixedPrecisionTrainer, select


class Model(nnx.Module):
    """A perceptron with a normalization that has running means."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(2, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.second = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.norm(self.first(x))))[:, 0]


def main(steps: int = 60) -> list[float]:
    """Train in bfloat16 with parameters in float32, and return the losses."""
    x = jax.random.uniform(jax.random.key(0), (128, 2), minval=-1.0)
    y = x[:, 0] * x[:, 1]

    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    trainer = MixedPrecisionTrainer(None, AdamW(learning_rate=0.02), policy="bfloat16", clip_norm=1.0)

    @jax.jit
    def step(params, rest, state):
        def loss_fn(params, x):  # what is an argument here is cast to bfloat16; the running means must not be
            model = nnx.merge(graph, params, rest, copy=True)
            loss = jnp.mean((model(x).astype(jnp.float32) - y) ** 2)
            return loss, nnx.state(model, nnx.Not(nnx.Param))

        (loss, new_rest), grads = trainer.value_and_grad(loss_fn, has_aux=True)(params, state, x)
        params, state, success = trainer.update(params, grads, state, loss=loss)
        return params, select(success, new_rest, rest), state, loss

    state, losses = trainer.init(params), []
    for _ in range(steps):
        params, rest, state, loss = step(params, rest, state)
        losses.append(float(loss))
    nnx.merge(graph, params, rest)  # the trained model
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}")
