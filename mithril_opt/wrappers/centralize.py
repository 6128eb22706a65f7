"""Gradient centralization."""

from typing import Any

import jax.numpy as jnp

from mithril_opt.core.fields import static
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.reductions import axes_at, check_axes, unit_mean
from mithril_opt.core.tree import map_leaves, paths_of, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.wrappers.base import Wrapper


@pytree
class CentralizeGradients(Wrapper):
    """Gradient centralization (Yong et al. 2020): g ← g − mean g, for matrices and kernels.

    The mean is taken over each unit: all that leads to one output of a kernel (…, in, out). A leaf with one axis or none stays
    as it is.

    Args:
        optimizer: the inner optimizer.
        unit_axes: the axes that count the units: −1, the last, for outputs; (0, −1) for a stack of layers; or a function
            `(path, leaf) -> axes`.

    Raises:
        ValueError: on `update`, a leaf has no such axes.
        TypeError: `optimizer` is no `Optimizer`, or `unit_axes` are no axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, CentralizeGradients
        >>> optimizer, params = CentralizeGradients(SGD(learning_rate=1.0)), jnp.zeros((2, 2))
        >>> optimizer.update(params, jnp.array([[1.0, 5.0], [3.0, 5.0]]), optimizer.init(params))[0]
        Array([[ 1.,  0.], [-1.,  0.]], dtype=float32)
    """

    optimizer: Optimizer
    unit_axes: Any = static(default=-1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axes("CentralizeGradients: unit_axes", self.unit_axes)

    @property
    def hands_on_gradients(self) -> bool:
        return False

    def compute_updates(self, params: PyTree, grads: PyTree, state: Any, **extra_args: Any) -> tuple[PyTree, Any]:
        def centralized(g: Array, p: Array, path: str) -> Array:
            if jnp.ndim(p) < 2:
                return g
            g = widen(g)
            return g - unit_mean(g, axes_at("CentralizeGradients: unit_axes", self.unit_axes, path, p))

        grads = map_leaves(centralized, params, grads, params, paths_of(params))
        return super().compute_updates(params, grads, state, **extra_args)

    def says(self) -> str:
        return "gradients of kernels centered around their means"

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        return "no leaf has two axes" if all(jnp.ndim(leaf) < 2 for _, leaf, _ in leaves) else None
