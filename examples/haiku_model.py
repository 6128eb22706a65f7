"""haiku: parameters in two levels of dictionaries, whose keys contain slashes."""

import haiku as hk
import jax
import jax.numpy as jnp

from mithril_opt import SGD, AdamW, MultiOptimizer, clip_gradients


def main(steps: int = 60) -> list[float]:
    """Train, and return the losses."""
    x = jax.random.uniform(jax.random.key(0), (128, 2), minval=-1.0)
    y = x[:, 0] * x[:, 1]

    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([32, 1])(x)[:, 0]))
    params = model.init(jax.random.PRNGKey(1), x)
    optimizer = MultiOptimizer(
        {"biases": SGD(learning_rate=0.1, momentum=0.9), "weights": AdamW(learning_rate=0.02)},
        groups={"biases": "mlp/~/*/b", "weights": "*/w"},
    )

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda params: jnp.mean((model.apply(params, x) - y) ** 2))(params)
        return *optimizer.update(params, clip_gradients(grads, clip_norm=1.0), state), loss

    state, losses = optimizer.init(params), []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}")
