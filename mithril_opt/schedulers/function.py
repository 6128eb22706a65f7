"""PyTorch's schedules that multiply the base rate by a function of your own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.fields import number, static
from mithril_opt.core.pytree import pytree
from mithril_opt.core.schedule import MAX_STEP, Schedule
from mithril_opt.core.typing import Array, Scalar
from mithril_opt.schedulers.numerics import LARGEST, integer_power

CHUNK = 4096


@pytree
class LambdaLR(Schedule):
    """η(k) = base_lr · f(k) for a function of your own (`torch.optim.lr_scheduler.LambdaLR`).

    Args:
        base_lr: the rate that the factor multiplies.
        lr_lambda: f, a function of the step, an int32 array, built from jax.numpy operations.

    Raises:
        TypeError: `lr_lambda` is not callable. (A list of functions, one per group, becomes one schedule per optimizer of a
            `MultiOptimizer`.)
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import LambdaLR
        >>> LambdaLR(0.5, lambda step: 0.5**step)(2)
        Array(0.125, dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    lr_lambda: Callable[[Array], Any] = static()

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_function(self, self.lr_lambda)

    def value(self, step: Array) -> Array:
        return self.base_lr * jnp.asarray(self.lr_lambda(step))


@pytree
class MultiplicativeLR(Schedule):
    """η(k) = base_lr · f(1) · f(2) ⋯ f(k) (`torch.optim.lr_scheduler.MultiplicativeLR`); f(0) is not used.

    If f returns a Python number whatever the step, the product is a power of it, exact and free. Otherwise the product is
    computed anew at every step, 4096 factors at a time, until it is 0: about 50 µs on a CPU for every 4096 steps. Write a long
    run in epochs, with `PerEpoch`, or as a closed form, with `LambdaLR`. Each factor is rounded to float32, so the relative
    error grows with the number of factors. Derivatives with respect to what f closes over are available in forward mode only.

    Args:
        base_lr: the rate at k = 0.
        lr_lambda: f, a function of the step, an int32 scalar, built from jax.numpy operations.

    Raises:
        TypeError: `lr_lambda` is not callable.
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import MultiplicativeLR
        >>> MultiplicativeLR(1.0, lambda step: 0.5)([0, 1, 2])
        Array([1.  , 0.5 , 0.25], dtype=float32)
        >>> MultiplicativeLR(1.0, lambda step: jnp.where(step == 10, 0.5, 1.0))([9, 10, 11])
        Array([1. , 0.5, 0.5], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    lr_lambda: Callable[[Array], Any] = static()

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_function(self, self.lr_lambda)

    def value(self, step: Array) -> Array:
        constant = _constant_value(self.lr_lambda)
        if constant is not None:
            turns = (constant < 0) & (step % 2 == 1)
            return jnp.where(turns, -1, 1) * integer_power(abs(constant), step, self.base_lr)
        return self.base_lr * jnp.minimum(_product(self.lr_lambda, step), LARGEST)


def _require_function(owner: Any, function: Any) -> None:
    if not callable(function):
        raise TypeError(f"{type(owner).__name__}: lr_lambda must be one function of the step, got {function!r}")


def _constant_value(function: Callable[[Array], Any]) -> float | None:
    """The Python number that `function` returns whatever the step; None if it returns an array."""
    returned = []
    jax.eval_shape(lambda step: returned.append(function(step)), jax.ShapeDtypeStruct((), jnp.int32))
    return float(returned[0]) if isinstance(returned[0], int | float | np.number) else None


@functools.partial(jax.jit, static_argnums=0)  # so that a call outside jit compiles once
def _product(function: Callable[[Array], Any], step: Array) -> Array:
    """The product of function(i) over i = 1 … step, for every element of `step`."""

    def unfinished(carry: tuple[Array, Array]) -> Array:
        first, product = carry
        return jnp.any((first < step) & (product != 0))

    def multiply(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        first, product = carry
        factors = jax.vmap(lambda i: jnp.float32(function(i)))(first + jnp.arange(1, CHUNK + 1, dtype=jnp.int32))
        products = jnp.cumprod(jnp.concatenate([jnp.ones(1, jnp.float32), factors]))
        return jnp.minimum(first, MAX_STEP - CHUNK) + CHUNK, product * products[jnp.clip(step - first, 0, CHUNK)]

    start = jnp.int32(0), jnp.ones(step.shape, jnp.float32)
    return jax.lax.while_loop(unfinished, multiply, start)[1]
