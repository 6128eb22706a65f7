"""Clipping as part of an optimizer."""

import dataclasses
import math
from typing import Any

import jax

from mithril_opt.clipping import clip_gradients
from mithril_opt.core.fields import number
from mithril_opt.core.numerics import scalar_f32
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import Seen
from mithril_opt.core.tree import widen
from mithril_opt.core.typing import Array, PyTree, Scalar
from mithril_opt.wrappers.base import Wrapper
from mithril_opt.wrappers.words import constant, in_digits, of_a_window, scale_does_not_matter


@pytree
class Clip(Wrapper):
    """An optimizer that sees its gradients clipped, with the rule of `clip_gradients`.

    Outside a wrapper, `clip_gradients` before `update` does the same. As part of the optimizer it clips what `clip_gradients`
    cannot reach: the mean of a window (`Accumulate(Clip(AdamW(), clip_norm=1.0), every=8)`, PyTorch's order), or one group
    of a `MultiOptimizer` by its own norm. The state is that of the inner optimizer.

    Args:
        optimizer: the inner optimizer.
        clip_norm: bound for the global norm of the leaves that train, ≥ 0, or its schedule; an infinite one clips nothing.
        clip_value: bound for every element, ≥ 0, or its schedule.

    Raises:
        ValueError: not exactly one of the two bounds is given, or it is negative.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Clip
        >>> optimizer = Clip(SGD(learning_rate=1.0), clip_norm=1.0)
        >>> params = jnp.array([1.0, 1.0])
        >>> optimizer.update(params, jnp.array([0.0, 2.0]), optimizer.init(params))[0]
        Array([1., 0.], dtype=float32)
    """

    optimizer: Optimizer
    _: dataclasses.KW_ONLY
    clip_norm: Scalar | None = number(default=None, minimum=0, optional=True, infinite=True)
    clip_value: Scalar | None = number(default=None, minimum=0, optional=True, infinite=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.clip_norm is None) == (self.clip_value is None):
            raise ValueError(f"Clip: give exactly one of clip_norm and clip_value, got {self.clip_norm!r}, {self.clip_value!r}")

    @property
    def hands_on_gradients(self) -> bool:
        return self.clip_norm is not None  # where it clips, it is known, and where not, it changes nothing

    def clips(self, state: Any, seen: Seen) -> Array:
        inside, bound = super().clips(state, seen), self.numbers(state).clip_norm
        return inside if bound is None else ((seen.norm > scalar_f32(bound)) & (seen.bad_leaf < 0)) | inside

    def compute_updates(self, params: PyTree, grads: PyTree, state: Any, **extra_args: Any) -> tuple[PyTree, Any]:
        # In float32 or wider, as whatever comes next computes.
        wide = jax.tree.map(widen, self.drop_frozen(params, grads))
        own = self.numbers(state)
        clipped = clip_gradients(wide, clip_value=own.clip_value, clip_norm=own.clip_norm)
        return self.optimizer.compute_updates(params, clipped, state, **extra_args)

    def says(self) -> str:
        if self.clip_norm is None:
            return f"each element of the gradients clipped to ±{in_digits(self.clip_value)}" + of_a_window(self.optimizer)
        return f"gradients clipped to a norm of {in_digits(self.clip_norm)} together" + of_a_window(self.optimizer)

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        bound = self.clip_value if self.clip_norm is None else self.clip_norm
        if constant(bound) == math.inf:
            return "its bound is infinite"
        return None if self.clip_norm is None else scale_does_not_matter(leaves)
