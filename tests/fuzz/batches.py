"""What is drawn anew for every entry of a batch: numbers, parameters, gradients, and when a step goes wrong."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ENTRIES, STEPS = 48, 16


class Batch(NamedTuple):
    """The arguments of the program.

    Attributes:
        numbers: an optimizer or a trainer with arrays of the batch for numbers; float64.
        params: tree of arrays, first axis the batch.
        gradients: for each pattern by path, first axes the batch and the repetitions.
        losses: for each pattern likewise.
        clock: where the clock starts, or the clocks.
    """

    numbers: Any
    params: Any
    gradients: list[dict[str, np.ndarray]]
    losses: list[np.ndarray]
    clock: np.ndarray


def draw(structure, rng):
    made = [structure.make(rng) for _ in range(1 if structure.constant else ENTRIES)]
    numbers = jax.tree.map(lambda *x: np.array(x), *made)
    repetitions = STEPS // len(structure.patterns)
    params = jax.tree.map(lambda leaf: parameter(leaf, rng), structure.tree, is_leaf=lambda x: hasattr(x, "grad_dtype"))
    gradients, losses = [], []
    for pattern in structure.patterns:
        given = [leaf for leaf in structure.leaves if leaf.path in pattern]
        drawn, loss = spoil(structure, given, {leaf.path: gradient(structure, leaf, repetitions, rng) for leaf in given}, rng)
        gradients.append({leaf.path: cast(drawn[leaf.path], leaf.grad_dtype) for leaf in given})
        losses.append(loss.astype(np.float32))
    late = np.where(rng.random(ENTRIES) < 0.5, 0, 2.0 ** rng.uniform(0, 31, ENTRIES))
    clock = np.where(rng.random(ENTRIES) < 0.1, 2**31 - 1, late) if structure.late else rng.integers(0, 20, ENTRIES)
    return made[0], Batch(numbers, params, gradients, losses, clock.astype(np.int32))


def parameter(leaf, rng):
    shape = (ENTRIES, *leaf.shape)
    if not leaf.trains:
        return rng.integers(-9, 9, shape).astype(np.int32)
    size = 10.0 ** rng.uniform(-3, 2, (ENTRIES, *(1 for _ in leaf.shape)))
    values = normal(leaf.dtype, shape, rng) * size
    values = np.where(rng.random(shape) < 0.15, rng.choice([0.0, -0.0, 1.0, -3.0], shape), values)
    if leaf.dtype == jnp.float16:  # where a step leaves its range, too
        values = np.where(rng.random(shape) < 0.1, rng.choice([6e4, 65504.0, -65504.0], shape), values)
    return cast(values, leaf.dtype)


def normal(dtype, shape, rng):
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if jnp.issubdtype(dtype, jnp.complexfloating) else real


def gradient(structure, leaf, repetitions, rng):
    """Gradients in many sizes: one for an entry, a step or an element; equal elements, zeros of both signs."""
    ones = tuple(1 for _ in leaf.shape)
    entry, step = (ENTRIES, 1, *ones), (ENTRIES, repetitions, *ones)
    shape = (ENTRIES, repetitions, *leaf.shape)
    sizes = [
        10.0 ** rng.uniform(-3, 1, entry),
        10.0 ** rng.uniform(-12, 6, step),
        10.0 ** rng.uniform(-20, 12, shape),
        10.0 ** rng.uniform(-45, -20, step),
        np.zeros(entry),
        10.0 ** rng.uniform(-2, 2, step),
        10.0 ** (rng.uniform(-2, 6, step) if structure.tame else rng.uniform(6, 38.4, step)),
    ]
    kind = rng.choice(len(sizes), p=[0.3, 0.15, 0.1, 0.05, 0.05, 0.2, 0.15], size=entry)
    size = sum(np.where(kind == i, given, 0.0) for i, given in enumerate(sizes))
    values = normal(leaf.grad_dtype, shape, rng)
    values = np.where(kind == 5, np.ones_like(values), values) * size
    values = np.where(rng.random(shape) < np.where(rng.random(entry) < 0.3, 0.5, 0.0), rng.choice([0.0, -0.0], shape), values)
    largest = 20.0 if leaf.dtype == jnp.float16 and structure.entrance == "update" else LARGEST[jnp.dtype(leaf.grad_dtype).name]
    return limited(values, largest)


LARGEST = {"float32": 3.4e38, "bfloat16": 3.38e38, "float16": 65504.0, "complex64": 3.4e38}


def limited(values, largest):
    if np.iscomplexobj(values):
        return limited(values.real, largest) + 1j * limited(values.imag, largest)
    return np.clip(values, -largest, largest)


def spoil(structure, leaves, gradients, rng):
    """`gradients` and losses of steps that go wrong: an infinite or undefined element, a loss that is no number, or both."""
    steps = next(iter(gradients.values())).shape[:2]
    if structure.entrance == "update":  # whatever it meets stays: late, and in few entries
        bad = (rng.random((steps[0], 1)) < 0.15) & (np.arange(steps[1]) == rng.integers(steps[1] // 2, steps[1] + 1))
        lost = np.zeros(steps, bool)
    else:
        often = rng.choice([0.0, 0.1, 0.3, 0.7], (steps[0], 1))
        bad, lost = rng.random(steps) < often, rng.random(steps) < often / 3
    which, value = rng.integers(len(gradients), size=steps), rng.choice([np.inf, -np.inf, np.nan], steps)
    for i, leaf in enumerate(leaves):
        if structure.entrance == "update" and leaf.dtype == jnp.complex64:
            continue  # how far it spreads between the components, nobody promises
        values = gradients[leaf.path]
        spoilt = (bad & (which == i)).reshape(steps + (1,) * (values.ndim - 2))
        first = np.zeros(values.shape[2:], bool)
        first.reshape(-1)[:1] = True
        gradients[leaf.path] = np.where(spoilt & first, value.reshape(spoilt.shape), values)
    return gradients, np.where(lost, rng.choice([np.nan, np.inf], steps), rng.standard_normal(steps))


def cast(values, dtype):
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)
