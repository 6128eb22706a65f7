"""Adaptive gradient clipping."""

from typing import Any

import jax.numpy as jnp

from mithril_opt.core.fields import ScalarOrSchedule, number, static
from mithril_opt.core.norm import LARGE
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.reductions import axes_at, check_axes, unit_norm
from mithril_opt.core.tree import map_leaves, paths_of, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.wrappers.base import Wrapper
from mithril_opt.wrappers.words import in_digits, of_a_window, scale_does_not_matter


@pytree
class AGC(Wrapper):
    """Adaptive gradient clipping (Brock et al. 2021): a gradient is clipped by the norm of what it belongs to.

        g ← g · min(1, c · max(‖p‖, ε) / ‖g‖)

    The norms are taken over each unit: all that leads to one output of a kernel (…, in, out), or the whole of a vector. At or
    below its bound the gradient of a unit is exactly what it was; one that is not finite comes back as it is. The paper leaves
    the last layer out: give that a group of its own in a `MultiOptimizer`.

    Args:
        optimizer: the inner optimizer.
        clipping: c ≥ 0, or its schedule.
        epsilon: ε ≥ 0, so that parameters that start at 0 can move; or its schedule.
        unit_axes: the axes that count the units, for leaves of more than one axis: −1, the last, for outputs; (0, −1) for a
            stack of layers; or a function `(path, leaf) -> axes`.

    Raises:
        ValueError: a Python number is out of its range; on `update`, a leaf has no such axes.
        TypeError: `optimizer` is no `Optimizer`, or `unit_axes` are no axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AGC, SGD
        >>> optimizer = AGC(SGD(learning_rate=1.0), clipping=0.125)
        >>> params = jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> grads = jnp.array([[5.0, 0.125], [0.0, 0.0]])
        >>> optimizer.update(params, grads, optimizer.init(params))[0]
        Array([[2.375, 0.875], [4.   , 0.   ]], dtype=float32)
    """

    optimizer: Optimizer
    clipping: ScalarOrSchedule = number(default=0.01, minimum=0)
    epsilon: ScalarOrSchedule = number(default=1e-3, minimum=0)
    unit_axes: Any = static(default=-1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axes("AGC: unit_axes", self.unit_axes)

    @property
    def hands_on_gradients(self) -> bool:
        return False

    def compute_updates(self, params: PyTree, grads: PyTree, state: Any, **extra_args: Any) -> tuple[PyTree, Any]:
        own = self.numbers(state)

        def clipped(g: Array, p: Array, path: str) -> Array:
            axes, g = axes_at("AGC: unit_axes", self.unit_axes, path, p) if jnp.ndim(p) > 1 else None, widen(g)
            bound = own.clipping * jnp.maximum(unit_norm(widen(p), axes), own.epsilon)
            # So that neither the norm overflows nor its inverse vanishes.
            scale = jnp.where(jnp.max(jnp.abs(g), initial=0) > LARGE, 1 / LARGE, 1).astype(g.real.dtype)
            norm = unit_norm(g * scale, axes)
            clips = (norm > bound * scale) & jnp.isfinite(norm)
            return jnp.where(clips, g * scale * (bound / jnp.where(clips, norm, 1)), g).astype(g.dtype)

        grads = map_leaves(clipped, params, grads, params, paths_of(params))
        return super().compute_updates(params, grads, state, **extra_args)

    def says(self) -> str:
        return f"gradients clipped to {in_digits(self.clipping)} of the norm of what they belong to" + of_a_window(
            self.optimizer
        )

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        return scale_does_not_matter(leaves)
