"""The library's side: a batch of short trainings in one compiled program, every step of which is handed out."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .batches import STEPS
from .structures import Leaf


class Step(NamedTuple):
    """A step, and what is there after it.

    Attributes:
        params: tree of parameters.
        state: the state of the optimizer or the trainer.
        success: whether the trainer committed the step; True without one, None before the first.
        grads: by path, as the optimizer or the trainer was given them.
        loss: as the trainer was told it, or as it returned it.
    """

    params: Any
    state: Any
    success: Any = None
    grads: Any = None
    loss: Any = None


def run(structure, constant, batch):
    """What was there before the first step, and the steps of every pattern, first axes the batch and the repetitions.

    A program is one step: in a program of two the compiler may compute what is between them twice, and not to the same bits.

    Args:
        structure: what is compiled.
        constant: an optimizer with Python numbers, which is used where the structure says so.
        batch: the arguments; `numbers` in float64, which are rounded here as at any jit boundary.
    """

    def over_batch(function):
        """`function` of an optimizer and more, for each entry of the batch."""

        def of_entry(numbers, *inputs):
            return function(constant if structure.constant else numbers, *inputs)

        return jax.jit(jax.vmap(of_entry) if structure.batched else lambda *inputs: jax.lax.map(lambda x: of_entry(*x), inputs))

    numbers = None if structure.constant else jax.tree.map(narrow, batch.numbers)
    init = over_batch(lambda optimizer, params, clock: started(optimizer.init(params), clock))
    step = over_batch(functools.partial(one_step, structure))
    history = [Step(batch.params, init(numbers, batch.params, batch.clock))]
    for i in range(STEPS):
        repetition, pattern = divmod(i, len(structure.patterns))
        gradients = {path: g[:, repetition] for path, g in batch.gradients[pattern].items()}
        before = history[-1]
        history.append(step(numbers, before.params, before.state, gradients, batch.losses[pattern][:, repetition]))
    return history


def narrow(number):
    return jnp.asarray(number, jnp.int32 if number.dtype.kind == "i" else jnp.float32)


def started(state, clock):
    """`state` with all of its clocks at `clock`."""
    is_clock = lambda path: getattr(path[-1], "name", "") == "step"  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, leaf: clock if is_clock(path) else leaf, state)


def one_step(structure, optimizer, params, state, gradients, loss):
    if structure.entrance == "update":
        new = optimizer.update(params, tree_of(structure, gradients, params), state)
        return Step(*new, jnp.bool(True), gradients, loss)
    return ENTRANCES[structure.entrance](structure, optimizer, params, state, gradients, loss)


def tree_of(structure, by_path, params=None):
    """A tree of gradients: None where there is none, and for passengers what no optimizer should look at."""
    junk = {} if params is None or not structure.with_loss else by_paths(structure, params)
    given = lambda leaf: by_path.get(leaf.path, None if leaf.trains else junk.get(leaf.path))  # noqa: E731
    return jax.tree.map(given, structure.tree, is_leaf=is_leaf)


def is_leaf(node):
    return isinstance(node, Leaf)


def by_paths(structure, tree):
    """The leaves of `tree`, shaped like the parameters, by path; those that are None are absent."""
    leaves = jax.tree.structure(structure.tree, is_leaf=is_leaf).flatten_up_to(tree)
    return {leaf.path: x for leaf, x in zip(structure.leaves, leaves, strict=True) if x is not None}


def scaled(structure, trainer, params, state, gradients, loss):
    """Gradients that somebody else has scaled."""
    scale = state.loss_scale.scale if trainer.policy.needs_loss_scaling else jnp.float32(1)
    grads = {path: (wide(g) * scale.astype(wide(g).dtype)).astype(g.dtype) for path, g in gradients.items()}
    told = loss if structure.with_loss else jnp.zeros_like(loss)
    tree = tree_of(structure, grads, params)
    new = trainer.update(params, tree, state, loss=told if structure.with_loss else None)
    return Step(*new, grads, told)


def wide(x):
    return x.astype(jnp.result_type(x) if jnp.iscomplexobj(x) else jnp.float32)


def value_and_grad(structure, trainer, params, state, gradients, _):
    """A loss whose gradients are given numbers."""

    def linear(params):
        weights = by_paths(structure, params)
        terms = [jnp.sum(jnp.real(wide(weights[path]) * along(weights[path], g))) for path, g in gradients.items()]
        return sum(terms, start=jnp.float32(0))

    loss, grads = trainer.value_and_grad(linear)(params, state)
    grads = {path: g for path, g in by_paths(structure, grads).items() if path in gradients}
    return Step(*trainer.update(params, tree_of(structure, grads, params), state, loss=loss), grads, loss)


def along(weight, g):
    return wide(g).astype(jnp.result_type(wide(weight)))


def halves(structure, trainer, params, state, gradients, _):
    """Forward through a model that does nothing, and back."""
    outputs, pullback = trainer.forward(params, state, None)
    given = {path: along(x, gradients[path]) for path, x in by_paths(structure, outputs).items() if path in gradients}
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in given.values()]))
    new = trainer.backward_and_update(params, state, pullback, tree_of(structure, given))
    scale = state.loss_scale.scale if trainer.policy.needs_loss_scaling else jnp.float32(1)

    def cotangent(leaf, output):
        if not leaf.trains:
            return np.zeros(leaf.shape, jax.dtypes.float0)
        return given[leaf.path] * scale.astype(output.dtype) if leaf.path in given else jnp.zeros_like(output)

    (grads,) = pullback.vjp(jax.tree.map(cotangent, structure.tree, outputs, is_leaf=is_leaf))
    return Step(*new, by_paths(structure, grads), jnp.where(finite, 0.0, jnp.nan))


ENTRANCES = {"scaled": scaled, "value_and_grad": value_and_grad, "halves": halves}
