"""Which dtype computes, which one parameters are kept in, and which one comes out."""

from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.fields import static
from mithril_opt.core.pytree import pytree, set_field
from mithril_opt.core.typing import PyTree

NAMES = ("float16", "bfloat16", "float32", "float64")


@pytree
class Policy:
    """The three dtypes of a mixed-precision computation. Only real floating leaves are cast; all others stay as they are.

    Args:
        compute_dtype: what the model computes in; a dtype or one of the names "float16", "bfloat16", "float32", "float64".
        param_dtype: what `cast_to_param` casts to, for parameters yet to be made; the trainer leaves them as they come.
        output_dtype: what outputs and losses come out in.

    Raises:
        ValueError: a dtype that is not real floating, or an unknown name.
        TypeError: what is given is no dtype at all.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import Policy
        >>> Policy("bfloat16").cast_to_compute({"x": jnp.ones(2), "labels": jnp.arange(2)})
        {'labels': Array([0, 1], dtype=int32), 'x': Array([1, 1], dtype=bfloat16)}
    """

    compute_dtype: Any = static()
    param_dtype: Any = static(default="float32")
    output_dtype: Any = static(default="float32")

    def __post_init__(self) -> None:
        for name in ("compute_dtype", "param_dtype", "output_dtype"):
            set_field(self, name, _floating(name, getattr(self, name)))

    def cast_to_compute(self, tree: PyTree) -> PyTree:
        """`tree` with its floating leaves in the compute dtype."""
        return cast_floating(tree, self.compute_dtype)

    def cast_to_param(self, tree: PyTree) -> PyTree:
        """`tree` with its floating leaves in the dtype of the parameters."""
        return cast_floating(tree, self.param_dtype)

    def cast_to_output(self, tree: PyTree) -> PyTree:
        """`tree` with its floating leaves in the dtype of the outputs."""
        return cast_floating(tree, self.output_dtype)

    @property
    def needs_loss_scaling(self) -> bool:
        """Whether gradients can underflow in the compute dtype: true of dtypes with fewer exponent bits than float32."""
        return int(jnp.finfo(self.compute_dtype).minexp) > int(jnp.finfo(jnp.float32).minexp)


def cast_floating(tree: PyTree, dtype: Any) -> PyTree:
    """`tree` with its real floating arrays cast to `dtype`; every other leaf as it is."""

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def _floating(name: str, dtype: Any) -> Any:
    if isinstance(dtype, str) and dtype not in NAMES:
        raise ValueError(f"Policy: {name} must be one of {', '.join(NAMES)}, got {dtype!r}")
    # NumPy would read None as float64.
    if not isinstance(dtype, str | type | jnp.dtype):
        raise TypeError(f"Policy: {name} must be a dtype or one of {', '.join(NAMES)}, got {dtype!r}")
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"Policy: {name} must be a real floating dtype, got {dtype}")
    return dtype
