"""In how many bits the demo keeps parameters and slots."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mithril_opt import Optimizer, Quantize, Round
from mithril_opt.core.typing import PyTree


class Storage(NamedTuple):
    """How parameters and slots are kept.

    Attributes:
        wrap: from an optimizer to one that stores.
        dtype: of the parameters.
        title: in words.
    """

    wrap: Callable[[Optimizer], Optimizer]
    dtype: Any
    title: str

    def cast(self, params: PyTree) -> PyTree:
        """`params` in the dtype in which they are kept."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, self.dtype), params)


FLOAT32 = "float32"
STORAGES = {
    FLOAT32: Storage(lambda rule: rule, jnp.float32, "everything in float32"),
    "16bit": Storage(lambda rule: Quantize(rule), jnp.float32, "slots in 16 bits"),
    "8bit": Storage(lambda rule: Quantize(rule, bits=8), jnp.float32, "slots in 8 bits"),
    "bfloat16": Storage(lambda rule: Round(rule), jnp.bfloat16, "parameters in bfloat16 and 8 bits beside them"),
    "bfloat16+16bit": Storage(lambda rule: Round(Quantize(rule)), jnp.bfloat16, "the same, and slots in 16 bits"),
    "bfloat16+8bit": Storage(lambda rule: Round(Quantize(rule, bits=8)), jnp.bfloat16, "the same, and slots in 8 bits"),
}


def bytes_per_parameter(params: PyTree, *state: PyTree) -> float:
    """What live buffers take up, those of `params` included."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return sum(leaf.nbytes for leaf in jax.tree.leaves((params, state))) / count
