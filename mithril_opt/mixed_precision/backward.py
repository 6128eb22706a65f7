"""Backward passes from a scaled cotangent. The loss itself is never multiplied."""

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.fields import static
from mithril_opt.core.pytree import pytree
from mithril_opt.core.tree import agree, describe_leaf, overlay, trained, trains, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.mixed_precision.policy import Policy

# The largest power of two that a float16 cotangent of 1 can be multiplied by.
MAX_FLOAT16_SCALE = 2.0**15


@pytree
class Pullback:
    """The backward half of `MixedPrecisionTrainer.forward`: a pytree, so it may cross a jit boundary.

    Attributes:
        vjp: from cotangents of the outputs to a tuple with the gradient of the parameters.
        outputs: the outputs' shapes and dtypes, as a hashable pair of structure and leaves.
    """

    vjp: Any
    outputs: Any = static()


def loss_and_aux(returned: Any, has_aux: bool) -> tuple[Any, Any]:
    """What a loss function returned, as loss and aux; aux is None without `has_aux`."""
    if has_aux and not (isinstance(returned, tuple) and len(returned) == 2):
        raise TypeError(f"with has_aux=True loss_fn must return a pair (loss, aux), got {describe_leaf(returned)}")
    loss, aux = returned if has_aux else (returned, None)
    if isinstance(loss, float):
        raise TypeError(f"loss_fn returned the Python number {loss!r} as the loss, which does not depend on the parameters")
    check_loss(loss, "what loss_fn returns as the loss")
    return loss, aux


def check_loss(loss: Any, name: str) -> None:
    """Raise a TypeError unless `loss` is a real floating scalar."""
    if not trains(loss) or jnp.iscomplexobj(loss) or jnp.shape(loss) != ():
        raise TypeError(f"{name} must be a real floating scalar, got {describe_leaf(loss)}")


def check_argnums(argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    """`argnums` as a tuple of positions among `count` arguments."""
    indices = tuple(argnums) if isinstance(argnums, Sequence) else (operator.index(argnums),)
    if not all(-count <= index < count for index in indices):
        raise ValueError(f"argnums is {argnums}, but loss_fn is given {count} positional arguments")
    positions = tuple(index % count for index in indices)
    if len(set(positions)) < len(positions):
        raise ValueError(f"argnums is {argnums}, which names an argument twice")
    return positions


def loss_aux_and_grads(
    policy: Policy,
    loss_fn: Callable[..., Any],
    has_aux: bool,
    scale: Array | None,
    chosen: dict[str, Any],
    whole: dict[str, Any],
    batch: dict[str, Any],
) -> tuple[Array, Any, tuple[PyTree, ...]]:
    """Loss, aux, and the gradients by the `chosen` arguments, times `scale`. The arguments of `loss_fn`, by name or by position
    as a text, are in three dictionaries."""
    loss_dtypes: list[Any] = []

    def compute(*trees: PyTree) -> tuple[Array, Any]:
        by = {name: overlay(full, tree, full) for (name, full), tree in zip(chosen.items(), trees, strict=True)}
        keywords = policy.cast_to_compute(whole | batch | by)
        positional = [keywords.pop(name) for name in sorted(filter(str.isdigit, keywords), key=int)]
        loss, aux = loss_and_aux(loss_fn(*positional, **keywords), has_aux)
        loss_dtypes.append(jnp.result_type(loss))
        return policy.cast_to_output(loss), policy.cast_to_output(aux)

    loss, vjp, aux = jax.vjp(compute, *map(trained, chosen.values()), has_aux=True)
    return loss, aux, pull(vjp, loss, scale, loss_dtypes[0])


def pull(vjp: Callable[..., Any], loss: Array, scale: Array | None, computed_in: Any) -> Any:
    """The gradients of `loss`, which the loss function computed in `computed_in`, multiplied by `scale`."""
    one = jnp.ones_like(loss)  # under shard_map it varies over the axes that the loss varies over, and the scale does not
    if scale is None:
        return vjp(one)
    if jnp.float16 not in (computed_in, loss.dtype):
        return vjp(one * scale.astype(loss.dtype))
    warnings.warn(
        "the loss is float16, so no loss scale above 32768 can enter its backward pass; compute the loss in float32, "
        "from logits.astype(jnp.float32), under a policy whose output_dtype is float32",
        stacklevel=5,
    )
    usable = jnp.minimum(scale, MAX_FLOAT16_SCALE)
    return jax.tree.map(lambda grad: grad * (scale / usable).astype(grad.dtype), vjp(one * usable.astype(loss.dtype)))


def cotangents(outputs: PyTree, loss_gradients: PyTree, scale: Array | None) -> PyTree:
    """`loss_gradients` times `scale`, in the dtypes of `outputs`."""

    def cotangent(output: Any, gradient: Any) -> Any:
        if not trains(output):
            return np.zeros(output.shape, jax.dtypes.float0)
        gradient = jnp.zeros(output.shape) if gradient is None else widen(gradient)
        return (gradient if scale is None else gradient * scale.astype(gradient.dtype)).astype(output.dtype)

    leaves, structure = jax.tree.flatten(outputs)
    given = structure.flatten_up_to(agree(outputs, loss_gradients, ("output", "loss gradient")))
    return structure.unflatten(map(cotangent, leaves, given))
