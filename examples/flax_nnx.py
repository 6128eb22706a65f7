"""flax nnx with `nnx.Optimizer`: the optimizer as optax's transformation, paths of the model in the groups."""

import jax
import jax.numpy as jnp
from flax import nnx

from mithril_opt import Adam, AdamW, CosineAnnealingLR, MultiOptimizer, to_optax


class Model(nnx.Module):
    """A perceptron with a normalization that has running means, and dropout that has a key."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(2, 32, rngs=rngs), nnx.Linear(32, 1, rngs=rngs)])
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.05, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.norm(self.layers[0](x)))
        return self.layers[1](self.dropout(hidden))[:, 0]


def main(steps: int = 60) -> list[float]:
    """Train, and return the losses."""
    x = jax.random.uniform(jax.random.key(0), (128, 2), minval=-1.0)
    y = x[:, 0] * x[:, 1]

    model = Model(nnx.Rngs(0))
    rate = CosineAnnealingLR(0.02, T_max=steps)
    body = AdamW(learning_rate=rate, weight_decay=0.01, decay_mask=lambda path, leaf: path.endswith("kernel"))
    groups = MultiOptimizer({"norm": Adam(learning_rate=rate), "body": body}, groups={"norm": "norm/*", "body": "layers/*"})
    optimizer = nnx.Optimizer(model, to_optax(groups), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    return [float(step(model, optimizer)) for _ in range(steps)]


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}")
