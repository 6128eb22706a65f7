"""What the transcriptions of papers have in common: averages as sums, a problem, schedules of one jump."""

import functools

import jax.numpy as jnp
import numpy as np

STEPS = 60


def average(values, rates):
    """Σᵢ (1 − βᵢ) βᵢ₊₁ ⋯ βₜ xᵢ, which is what x̄ ← β x̄ + (1 − β) x comes to from x̄ = 0."""
    later = np.append(np.cumprod(rates[:0:-1])[::-1], 1.0)
    return np.tensordot((1 - np.array(rates)) * later, np.array(values), axes=1)


def abs_sq(g):
    return g.real**2 + g.imag**2


def early(before, after):
    """A schedule of one jump: the 21st update is the first with `after`."""
    return lambda step: jnp.where(step < 20, before, after)


def is_matrix(path, leaf):
    return leaf.ndim > 1


@functools.cache
def problem():
    """Parameters and a list of gradients, as jax.grad would return them; exact in float32."""
    rng = np.random.default_rng(11)
    shapes = {"matrix": (4, 3), "complex": (5,)}

    def tree():
        parts = {name: rng.normal(size=(2, *shape)).astype(np.float32) for name, shape in shapes.items()}
        return {name: part[0] + 1j * part[1] if name == "complex" else part[0] for name, part in parts.items()}

    return tree(), [tree() for _ in range(STEPS)]


def widened(leaf, precision=np.float64):
    return leaf.astype(np.result_type(leaf, precision))
