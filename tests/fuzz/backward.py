"""The first half of a step: the gradients of Σ Re c p are the given numbers c times the loss scale, the loss is not multiplied.

Both to what the narrowest dtype on the way holds. What becomes of the gradients is then compared from what they are.
"""

import numpy as np

from .bounded import LARGEST, Bounded
from .compare import compare, components

LARGEST_FLOAT16 = 65504.0


def backward(structure, policy, given, before, step):
    """Pairs of a name and what became of it.

    Args:
        structure: what was compiled.
        policy: the trainer's.
        given: c by path; 0 where it is absent.
        before: parameters and state before the step, by path.
        step: with the gradients and the loss.
    """
    scale, terms = components(before["state/loss_scale/scale"]), []
    for leaf in (leaf for leaf in structure.leaves if leaf.path in step.grads):
        found, p = step.grads[leaf.path], components(before[f"params/{leaf.path}"])
        c = components(given[leaf.path], p.shape[-1]) if leaf.path in given else np.zeros_like(p)
        narrow = np.float16 in (leaf.dtype, policy.compute_dtype) and p.shape[-1] == 1
        yield f"grads/{leaf.path}", compare(roughly(c * scale, LARGEST_FLOAT16 if narrow else LARGEST), found, found)
        terms.append((c * [1, -1][: p.shape[-1]], p))
    if structure.entrance == "value_and_grad":
        yield "loss", compare(product(terms), step.loss, step.loss)


def product(terms):
    """Σ c p, of which nothing is said where a parameter is no float16 or the sum no float32."""
    value = sum(np.sum(c * p, axis=(2, 3), keepdims=True) for c, p in terms)
    size = sum(np.sum(np.abs(c) * (np.abs(p) + 0.01), axis=(2, 3), keepdims=True) for c, p in terms)
    outside = [np.any(np.abs(p) > LARGEST_FLOAT16, axis=(2, 3), keepdims=True) for _, p in terms]
    unclear = np.any(outside, axis=0) | (2 * size > LARGEST)
    return Bounded(value, np.where(unclear, np.inf, 2.0**-7 * size + 1e-30))


def roughly(x, largest):
    """`x` to the digits of bfloat16, infinite above `largest`; small numbers may be flushed to 0 in float16, and of a complex
    number one component may spoil the other."""
    error = 2.0**-7 * np.abs(x) + 1e-4
    value = np.where(np.abs(x) - error > largest, np.inf, x)
    unclear = (np.abs(x) + error > largest) | ~np.isfinite(x).all(-1, keepdims=True)
    return Bounded(value, np.where(np.isfinite(value), np.where(unclear, np.inf, error), 0.0))
