"""The part of a mixed-precision step that is applied whole or not at all."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mithril_opt.clipping import clip_factors, exceeds, times
from mithril_opt.core.branch import update_if
from mithril_opt.core.launches import together
from mithril_opt.core.norm import first_bad_leaf, norm_of
from mithril_opt.core.numerics import scalar_f32
from mithril_opt.core.state import BAD_INPUT, OVERFLOW, Seen, exported
from mithril_opt.core.tree import select, stored
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.mixed_precision.loss_scale import LossScaleState


@exported
class TrainerState(NamedTuple):
    """What the next step needs.

    Attributes:
        optimizer: the state of the optimizer.
        loss_scale: the loss scale and its counters, 0-d arrays: `scale`, `good_steps`, `skipped` and others.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, MixedPrecisionTrainer
        >>> state = MixedPrecisionTrainer(None, SGD()).init(jnp.ones(3))
        >>> state.optimizer.step, state.loss_scale.scale
        (Array(0, dtype=int32), Array(32768., dtype=float32))
    """

    optimizer: Any
    loss_scale: LossScaleState


@jax.jit  # so that a call outside jit compiles itself once
def commit(
    trainer: Any, params: PyTree, grads: PyTree, state: TrainerState, input_finite: Array
) -> tuple[PyTree, TrainerState, Array]:
    """Unscale → finite check → clip → optimizer → commit; then the loss scale moves.

    Args:
        trainer: the `MixedPrecisionTrainer`.
        params: floating and complex arrays.
        grads: gradients scaled with the loss scale in `state`, None where there is none.
        state: the trainer's state.
        input_finite: boolean scalar, whether the loss was finite.

    Returns:
        Parameters, state, and whether the step was committed.
    """
    optimizer, scaling, scale = trainer.optimizer, trainer.scaling, together(state.loss_scale)
    unscale = [1 / scale.scale] if scaling.needed else []
    norm = norm_of(jax.tree.map(lambda grad: times(stored(grad), unscale), grads))
    bound = jnp.float32(jnp.inf) if trainer.clip_norm is None else scalar_f32(trainer.clip_norm)
    clip = [] if trainer.clip_norm is None else clip_factors(norm, bound)
    bad_leaf = first_bad_leaf(params, grads, norm.finite)
    told = optimizer.tell(state.optimizer, Seen(norm.value, exceeds(norm, bound), bad_leaf))
    input_finite &= optimizer.ready(state.optimizer, params)
    ok = jnp.all(norm.finite) & input_finite
    why = jnp.where(ok, 0, jnp.where(input_finite, OVERFLOW, BAD_INPUT))
    window, accumulates = optimizer.window(state.optimizer), optimizer.window_length not in (None, 1)

    old, factors = (params, told), [*unscale, *clip]
    (new_params, new), fits = update_if(ok, _update, _fits, old, optimizer, grads, factors, lazily=accumulates)
    skipped = optimizer.skip(new, why)
    new_state = optimizer.tell(new if skipped is new else select(ok, new, skipped), None)

    verdict = jnp.maximum(window.verdict, jnp.where(fits, why, BAD_INPUT))
    success = verdict == 0
    adjusted = select(window.closes, scaling.adjust(scale, success, verdict != BAD_INPUT), scale)
    counted = scaling.count(adjusted, success, input_finite & fits)
    last_bad_leaf = jnp.where(ok & fits, scale.last_bad_leaf, bad_leaf)
    grad_norm = jnp.where(input_finite, norm.value, scale.grad_norm)
    return new_params, TrainerState(new_state, counted._replace(last_bad_leaf=last_bad_leaf, grad_norm=grad_norm)), success


def _update(state: tuple[PyTree, Any], optimizer: Any, grads: PyTree, factors: list[Array]) -> tuple[Any, Array]:
    """The new parameters and state, the old ones if a float16 parameter overflows; and whether none does."""
    params, inner = state
    new = optimizer.update(params, jax.tree.map(lambda grad: times(grad, factors), grads), inner)
    narrow = [i for i in _given(params, grads) if jax.tree.leaves(params)[i].dtype == jnp.float16]
    if not narrow:
        return new, jnp.bool(True)
    # Only float16 is left by a step that float32 holds. To look at the new parameters costs a second pass.
    fits = jnp.all(norm_of([jax.tree.leaves(new[0])[i] for i in narrow]).finite)
    return select(fits, new, (params, optimizer.skip(inner, jnp.int32(BAD_INPUT)))), fits


def _fits(*_: Any) -> Array:
    return jnp.bool(True)


def _given(params: PyTree, grads: PyTree) -> list[int]:
    """The positions of the leaves of `params` that have a gradient."""
    return [i for i, grad in enumerate(jax.tree.structure(params).flatten_up_to(grads)) if grad is not None]
