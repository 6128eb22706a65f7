"""What tests of rules share."""

import jax
import numpy as np


def trajectory_of(optimizer, params, gradients):
    """Per leaf the parameters after every step."""
    state, trajectory, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for grads in gradients:
        params, state = update(params, grads, state)
        trajectory.append(params)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trajectory)
