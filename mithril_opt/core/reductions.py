"""Norms and means over a leaf: one for each layer where layers are stacked in it.

A *unit* is what one norm or mean is taken over. The field `unit_axes` of a rule names the axes that count the units, over
which nothing is reduced:

    None        the whole leaf is one unit
    0           so is each layer of a stack that is scanned along the first axis
    (0, 1)      so is each pair of the first two
    -1          so is each output of a kernel (…, in, out)

or it is a function `(path, leaf) -> axes`, for trees in which not every leaf is a stack. A stack of L layers is then treated as
L leaves are.

Results keep the axes that were reduced, with size 1. Under `jax.jit` a reduction is over all devices; inside `jax.shard_map` it
is over the local part alone.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.asked import asked
from mithril_opt.core.numerics import safe_divide, safe_sqrt
from mithril_opt.core.typing import Array, Axes


def check_axes(where: str, axes: Any) -> None:
    """Raise a TypeError that begins with `where` unless `axes` are axes or a function that may return them."""
    if not (callable(axes) or _are_axes(axes)):
        raise TypeError(f"{where} must be an axis, a tuple of axes, None or a function (path, leaf) -> axes, got {axes!r}")


def axes_at(where: str, axes: Any, path: str, leaf: Any) -> tuple[int, ...] | None:
    """What the field `axes` of a rule means at the leaf at `path`: axes ≥ 0, in the order given; None for None.

    Raises:
        ValueError: the leaf has no such axes; begins with the path and with `where`, the rule and its field.
    """
    chosen, rank = asked(where, axes, path, leaf) if callable(axes) else axes, np.ndim(leaf)
    if chosen is None:
        return None
    named: tuple[Any, ...] = chosen if isinstance(chosen, tuple) else (chosen,)
    own = tuple(axis % rank for axis in named if -rank <= axis < rank) if _are_axes(chosen) else ()
    if len(set(own)) != len(named):
        raise ValueError(f"at {path!r}: {where} must be different axes of {np.shape(leaf)}, got {chosen!r}")
    return own


def unit_mean(x: Array, unit_axes: Axes) -> Array:
    """The mean of `x` over each unit, the reduced axes kept with size 1. Its sum does not overflow.

    Args:
        x: real or complex array.
        unit_axes: the axes that count the units, an axis or a tuple; None if `x` is one unit.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import unit_mean
        >>> unit_mean(jnp.array([[3.0, 4.0], [6.0, 8.0]]), 0)
        Array([[3.5],
               [7. ]], dtype=float32)
    """
    axes = _reduced(x, unit_axes)
    mean, count = jnp.mean(x, axis=axes, keepdims=True), math.prod(x.shape[axis] for axis in axes)
    down = 2.0 ** -max(count - 1, 0).bit_length()  # a power of two after which no sum of finite elements overflows
    return jnp.where(jnp.isfinite(mean), mean, jnp.mean(x * down, axis=axes, keepdims=True) / down)


def unit_norm(x: Array, unit_axes: Axes) -> Array:
    """The 2-norm of each unit of `x`, real. It neither overflows nor underflows before the true norm does, because the squares
    are taken at a scale that the largest |x| decides, and its derivative at 0 is 0.

    Args:
        x: real or complex array.
        unit_axes: the axes that count the units, an axis or a tuple; None if `x` is one unit.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import unit_norm
        >>> unit_norm(jnp.array([[3.0, 4.0], [6.0, 8.0]]), 0)
        Array([[ 5.],
               [10.]], dtype=float32)
    """
    down, norm = norm_at_scale(x, unit_axes)
    return norm / down


def norm_at_scale(x: Array, unit_axes: Axes) -> tuple[Array, Array]:
    """For each unit of `x` a power of two, and the 2-norm of `x` times that, which is in range whatever the true norm is."""
    axes, parts = _reduced(x, unit_axes), [x.real, x.imag] if jnp.iscomplexobj(x) else [x]
    largest = [jnp.max(jnp.abs(part), axis=axes, keepdims=True, initial=0) for part in jax.lax.stop_gradient(parts)]
    down = _scale_of_squares(functools.reduce(jnp.maximum, largest))
    squares = sum(jnp.square(part * down) for part in parts)
    return down, safe_sqrt(jnp.sum(squares, axis=axes, keepdims=True))


def unit_rms(x: Array, unit_axes: Axes) -> Array:
    """√mean |x|² of each unit of `x`, as safe as `unit_norm`; 0 for a unit without elements.

    Args:
        x: real or complex array.
        unit_axes: the axes that count the units, an axis or a tuple; None if `x` is one unit.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import unit_rms
        >>> unit_rms(jnp.array([[1.0, 7.0, 1.0, 7.0]]), 0)
        Array([[5.]], dtype=float32)
    """
    count = math.prod(x.shape[axis] for axis in _reduced(x, unit_axes))
    return unit_norm(x, unit_axes) / math.sqrt(max(count, 1))


def norm_ratio(a: Array, b: Array) -> Array:
    """a / b of two norms, 1 where either is 0: a trust ratio."""
    return jnp.where((a == 0) | (b == 0), 1, safe_divide(a, b))


def _scale_of_squares(largest: Array) -> Array:
    """A power of two after which squares of what is as large as `largest` are in range. (To divide by
    `largest` itself is not safe: XLA turns (a / b) / c into a / (b c), which underflows.)"""
    big = 2.0 ** (jnp.finfo(largest.dtype).maxexp * 5 // 8)  # 2⁸⁰ in float32
    return jnp.where(largest < big**-0.5, big, jnp.where(largest > big**0.5, 1 / big, jnp.ones_like(largest)))


def _reduced(x: Array, unit_axes: Axes) -> tuple[int, ...]:
    kept = () if unit_axes is None else unit_axes if isinstance(unit_axes, tuple) else (unit_axes,)
    return tuple(axis for axis in range(x.ndim) if axis not in {unit % x.ndim for unit in kept})


def _are_axes(axes: Any) -> bool:
    named = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
    return all(isinstance(axis, int) and not isinstance(axis, bool) for axis in named)
