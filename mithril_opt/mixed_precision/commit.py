"""The part of a mixed-precision step that is applied whole or not at all."""

from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt._norm import norm_and_finite
from mithril_opt._numerics import scalar_f32
from mithril_opt._tree import select, widen
from mithril_opt._typing import Array, PyTree, Scalar
from mithril_opt.clipping import clip_factors
from mithril_opt.mixed_precision.loss_scale import BAD_INPUT, OVERFLOW, LossScale, LossScaleState
from mithril_opt.optimizer import Optimizer


@jax.jit  # so that a call outside jit compiles itself once
def commit(
    optimizer: Optimizer,
    scaling: LossScale,
    clip_norm: Scalar | None,
    params: PyTree,
    grads: PyTree,
    state: Any,
    scale_state: LossScaleState,
    input_finite: Array,
) -> tuple[PyTree, Any, LossScaleState, Array]:
    """Unscale → finite check → clip → optimizer → commit; then the loss scale moves.

    Args:
        optimizer: with its schedules resolved.
        scaling: the rule of the loss scale.
        clip_norm: bound for the norm of the unscaled gradients; None for no clipping.
        params: floating and complex arrays.
        grads: scaled gradients, None where there is none.
        state: the optimizer's state.
        scale_state: the loss scale that the gradients were scaled with.
        input_finite: boolean scalar, whether the loss was finite.

    Returns:
        Parameters, the optimizer's state, the loss scale's, and whether the step was committed.
    """
    inverse = (1 / scale_state.scale,) if scaling.needed else ()
    norm, leaf_finite = norm_and_finite(_times(grads, *inverse))
    ok = jnp.all(leaf_finite) & input_finite
    clip = () if clip_norm is None else clip_factors(norm, scalar_f32(clip_norm))
    why = jnp.where(ok, 0, jnp.where(input_finite, OVERFLOW, BAD_INPUT))
    first_bad = _first_bad_leaf(params, grads, leaf_finite)
    window = optimizer.window(state)

    # A branch, not a `where` around the update: to select afterwards would keep the old buffers alive and copy each of them.
    params, state = jax.lax.cond(
        ok,
        lambda params, grads, state: optimizer.update(params, _times(grads, *inverse, *clip), state),
        lambda params, grads, state: (params, optimizer.skip(state, why)),
        *(params, grads, state),
    )

    verdict = jnp.maximum(window.verdict, why)
    success = verdict == 0
    adjusted = scaling.adjust(scale_state, success, verdict != BAD_INPUT)
    bad_leaf = jnp.where(ok, scale_state.last_bad_leaf, first_bad)
    counted = scaling.count(select(window.closes, adjusted, scale_state), success, input_finite)
    return params, state, counted._replace(last_bad_leaf=bad_leaf), success


def _times(grads: PyTree, *factors: Array) -> PyTree:
    """Gradients in float32 or wider, multiplied by each factor in turn."""

    def multiply(grad: Array) -> Array:
        grad = widen(grad)
        for factor in factors:
            grad = grad * factor.astype(grad.dtype)
        return grad

    return jax.tree.map(multiply, grads)


def _first_bad_leaf(params: PyTree, grads: PyTree, leaf_finite: Array) -> Array:
    """The position among the leaves of `params` of the first non-finite gradient; −1 if all are finite."""
    given = [i for i, grad in enumerate(jax.tree.structure(params).flatten_up_to(grads)) if grad is not None]
    first = jnp.asarray(given, jnp.int32)[jnp.argmin(leaf_finite)] if given else -1
    return jnp.where(jnp.all(leaf_finite), -1, first)
