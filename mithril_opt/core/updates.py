"""Updates u of p ← p + u, and adding them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.tree import agree, cast, widen
from mithril_opt.core.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Moved:
    """An update with the parameter it leads to, where the optimizer has added them itself: in a branch that may not be taken,
    or with more digits than the parameter holds. Whichever of the two nobody reads is not computed.
    It is no pytree and no array, so that nobody changes an update without `plain`, which drops the parameter it led to.

    Attributes:
        update: u, in float32 or wider.
        param: what p + u is rounded to, in the dtype of p.
    """

    update: Array
    param: Array


def plain(updates: PyTree) -> PyTree:
    """`updates` as arrays that may be changed: what changes them decides where they lead."""
    return jax.tree.map(lambda u: u.update if isinstance(u, Moved) else u, updates)


def moved(params: PyTree, updates: PyTree, new: PyTree) -> PyTree:
    """`updates` with the parameters `new` that they lead to."""
    structure = jax.tree.structure(params)
    pairs = zip(structure.flatten_up_to(updates), structure.flatten_up_to(new), strict=True)
    return structure.unflatten([None if update is None else Moved(update, param) for update, param in pairs])


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """`params + updates`, arrays added in float32 or wider, in the dtypes of `params`; None where the update is None.

    Raises:
        ValueError: the two differ in structure or in a shape; names the path of the first difference.
    """
    agree(params, plain(updates), ("parameter", "update"))
    leaves, structure = jax.tree.flatten(params)
    pairs = zip(leaves, structure.flatten_up_to(updates), strict=True)
    return structure.unflatten([None if update is None else _new(param, update) for param, update in pairs])


def _new(param: Array, update: Any) -> Array:
    if isinstance(update, Moved):
        return update.param
    wide = widen(param)
    # `+` takes longer to trace, which a tree of thousands of leaves notices.
    new = jax.lax.add(wide, update) if wide.dtype == jnp.result_type(update) else wide + update
    return cast(new, jnp.result_type(param))
