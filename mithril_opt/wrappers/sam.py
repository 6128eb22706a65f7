"""Sharpness-aware minimization."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.fields import number, static
from mithril_opt.core.norm import norm_of
from mithril_opt.core.pytree import check_numbers, pytree
from mithril_opt.core.tree import agree, map_leaves, overlay, trained, widen
from mithril_opt.core.typing import Array, PyTree, Scalar
from mithril_opt.core.updates import apply_updates


@pytree
class SAM:
    """Sharpness-aware minimization (Foret et al. 2021): the gradient is taken where the loss is worst nearby.

        ε = ρ g / ‖g‖                       the norm over the whole tree; ε = 0 where g = 0
        ε = ρ |p|² g / ‖ |p| g ‖            with `adaptive` (Kwon et al. 2021)
        g ← ∇L(p + ε), for the update of p

    It is no optimizer but goes around any: two pure functions, of which the second is made with the first. Each step costs two
    gradients. ε does not depend on the scale of g, so gradients may come with a loss scale; if one is not finite the whole of ε
    is NaN, and the trainer skips the step. In a model that computes in 16 bits the smaller elements of ε are rounded away.

    Args:
        rho: ρ ≥ 0; ten times larger with `adaptive`.
        adaptive: measure the neighbourhood relative to the parameters.

    Raises:
        ValueError: `rho` is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SAM, SGD
        >>> optimizer, params = SGD(learning_rate=0.5), jnp.array([3.0, 4.0])
        >>> loss, grads = SAM(rho=0.5).value_and_grad(lambda p: jnp.sum(p**2) / 2)(params)
        >>> grads
        Array([3.3, 4.4], dtype=float32)
        >>> params, state = optimizer.update(params, grads, optimizer.init(params))
    """

    rho: Scalar = number(default=0.05, minimum=0)
    adaptive: bool = static(default=False)

    def __post_init__(self) -> None:
        check_numbers(self, schedules=False)

    def perturb(self, params: PyTree, grads: PyTree) -> PyTree:
        """p + ε, in the dtypes of `params`.

        Args:
            params: tree of parameters.
            grads: tree shaped like `params`, as `jax.grad` returns it. A leaf without a gradient stays as it is and does not
                count in the norm: `optimizer.drop_frozen(params, grads)` sees to that for frozen groups.

        Raises:
            ValueError: the trees do not fit; names the path of the first difference.
        """

        def weighted(g: Array, p: Array) -> Array:
            g = jnp.conj(widen(g)).astype(widen(p).dtype)  # jax.grad returns the conjugate of the direction of ascent
            return jnp.abs(widen(p)) * g if self.adaptive else g

        own = trained(params)
        directions = map_leaves(weighted, own, agree(params, grads), own)
        norm = norm_of(directions)
        factor, divisor = norm.divisor()
        radius = jnp.where(jnp.all(norm.finite), self.rho, jnp.nan)

        def ascent(d: Array, p: Array) -> Array:
            ε = radius * (d * factor / divisor)
            return (jnp.abs(widen(p)) * ε if self.adaptive else ε).astype(d.dtype)

        return overlay(params, apply_updates(own, map_leaves(ascent, own, directions, own)), params)

    def value_and_grad(
        self, loss_fn: Callable[..., Any], has_aux: bool = False, trainer: Any = None, micro_batches: int = 1
    ) -> Callable[..., Any]:
        """The loss at p, and the gradient at p + ε.

        Args:
            loss_fn: `(params, *args, **kwargs) -> loss`, or `-> (loss, aux)` with `has_aux`.
            has_aux: whether `loss_fn` returns `(loss, aux)`; that of p is returned.
            trainer: a `MixedPrecisionTrainer`, whose `value_and_grad` then does the work: the gradients are scaled for its
                `update`, and frozen leaves are left out.
            micro_batches: in how many pieces it takes the batch; the neighbour is that of the whole batch.

        Returns:
            A function `(params, *args, **kwargs)` that returns `loss, grads`, or `(loss, aux), grads`; with a trainer its
            state comes second. None is the gradient of what does not train.

        Raises:
            ValueError: `micro_batches` are given without a trainer.
        """
        if trainer is None and micro_batches != 1:
            raise ValueError(f"SAM: micro_batches are the trainer's; without one they must be 1, got {micro_batches!r}")
        settings = dict(has_aux=has_aux, micro_batches=micro_batches)
        run = _value_and_grad(loss_fn, has_aux) if trainer is None else trainer.value_and_grad(loss_fn, **settings)

        def wrapped(params: PyTree, /, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
            value, grads = run(params, *args, **kwargs)
            given = grads if trainer is None else trainer.optimizer.drop_frozen(trained(params), grads)
            return value, run(self.perturb(params, given), *args, **kwargs)[1]

        return wrapped


def _value_and_grad(loss_fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """`jax.value_and_grad` by what trains among the parameters."""

    def wrapped(params: PyTree, /, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        at = lambda own: loss_fn(overlay(params, own, params), *args, **kwargs)  # noqa: E731
        return jax.value_and_grad(at, has_aux=has_aux)(trained(params))

    return wrapped
