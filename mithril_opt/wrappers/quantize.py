"""Slots in 16 or 8 bits."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.branch import zero_after
from mithril_opt.core.coding import Coded, block_of, decode, encode, thresholds, to_bfloat16
from mithril_opt.core.fields import static
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import OptState, is_state
from mithril_opt.core.tree import describe_leaf, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.core.updates import apply_updates, moved, plain
from mithril_opt.wrappers.base import Wrapper, check_no_window

# Below these a leaf, or a block of it, is not worth its scales.
MIN_SIZE, MIN_BLOCK = 4096, 16


@pytree
class Quantize(Wrapper):
    """An optimizer that keeps its slots in 16 or 8 bits, in dithered storage: nothing stalls and nothing explodes.

    16 bits are bfloat16. 8 bits are sign(c) (|c| / 127)⁴ · scale, with a scale for up to 256 elements of a row, for leaves of
    4096 elements or more whose last axis has a divisor from 16 to 256. Others stay as they are, and so do float64 and complex
    slots, scalars, and what a rule needs exactly: the bases of SOAP, the points of the Schedule-Free rules, both moments of a
    centered RMSProp. In either form a number between two that can be stored becomes the upper one in the share of steps that
    keeps its mean right, by thresholds made of the step and the position alone; and what is not zero is never stored as zero.

    The state is that of the inner optimizer with other leaves: bfloat16 arrays or `Coded` codes and scales. A slot whose
    parameter got no gradient keeps every bit. In 8 bits one element that is infinite or NaN makes its block so. No derivative
    passes through codes.

    Args:
        optimizer: the inner optimizer; none that accumulates, which goes around this one.
        bits: 16 or 8.

    Raises:
        ValueError: another number of bits, or an optimizer that accumulates or is quantized already; on `update`, a state with
            slots of another width.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AdamW, Quantize
        >>> optimizer, params = Quantize(AdamW(), bits=8), {"w": jnp.ones((64, 128)), "b": jnp.ones(128)}
        >>> state = optimizer.init(params)
        >>> state.slots.mu["w"].codes.dtype, state.slots.mu["w"].scales.shape, state.slots.mu["b"].dtype
        (dtype('int8'), (64, 1), dtype('float32'))
    """

    optimizer: Optimizer
    bits: int = static(default=16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (8, 16) or isinstance(self.bits, bool):
            raise ValueError(f"Quantize: bits must be 16 or 8, got {self.bits!r}")
        check_no_window(self)
        if any(isinstance(node, Quantize) for node in jax.tree.leaves(self.optimizer, is_leaf=_is_quantize)):
            raise ValueError("Quantize: slots inside are stored in fewer bits already, by another Quantize")

    def init(self, params: PyTree) -> Any:
        # Without the barrier XLA would encode large constants while it compiles.
        return self.pack(jax.lax.optimization_barrier(self.optimizer.init(params)))

    def compute_updates(self, params: PyTree, grads: PyTree, state: Any, **extra_args: Any) -> tuple[PyTree, Any]:
        updates, inner = self.optimizer.compute_updates(params, grads, self.unpack(state), **extra_args)
        new = apply_updates(params, updates)
        # What overwrites a slot must not run before what still reads it, the parameter's update: XLA would copy the slot.
        packed = functools.partial(self._packed, zero=zero_after(new))
        return moved(params, plain(updates), new), _on_slots(packed, inner, state)

    def eval_params(self, params: PyTree, state: Any) -> PyTree:
        return self.optimizer.eval_params(params, self.unpack(state))

    def says(self) -> str:
        return f"slots in {self.bits} bits"

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        fits = any(self._fits(jax.eval_shape(widen, leaf)) for _, leaf, _ in leaves)
        return None if fits else f"no leaf has {f'{MIN_SIZE} elements' if self.bits == 8 else 'slots in float32'}"

    def pack(self, state: Any) -> Any:
        """The state of the inner optimizer with its slots in `bits` bits: what `compute_updates` of this optimizer takes."""
        return _on_slots(self._packed, state)

    def unpack(self, state: Any) -> Any:
        """The state of the inner optimizer, with slots in float32."""
        return _on_slots(self._unpacked, state)

    def _packed(self, step: Array, position: int, slot: Any, old: Any = None, zero: Any = 0) -> Any:
        """`slot` as it is stored; a part of it in codes as `old` is, since all of it may be large where the part is not."""
        if not (self._fits(slot) or isinstance(old, Coded)):
            return slot
        theta = thresholds(slot.shape, step, salt=position * 0x85EBCA6B) + zero
        return to_bfloat16(slot.astype(jnp.float32), theta) if self.bits == 16 else encode(slot.astype(jnp.float32), theta)

    def _unpacked(self, step: Array, position: int, slot: Any) -> Any:
        coded = isinstance(slot, Coded)
        stored, wanted = slot.codes if coded else slot, jnp.bfloat16 if self.bits == 16 else jnp.int8
        if not (coded or self._fits(slot)):
            return slot
        if stored.dtype != wanted:
            raise ValueError(
                f"the state does not belong to Quantize(..., bits={self.bits}): it has a slot {describe_leaf(stored)}; "
                "pack(state) makes one of a state of the inner optimizer"
            )
        return decode(slot) if coded else slot.astype(jnp.float32)

    def _fits(self, slot: Any) -> bool:
        """Whether `slot`, an array, is one that is stored in fewer bits."""
        if isinstance(slot, Coded) or slot.dtype not in (jnp.float32, jnp.bfloat16) or not slot.shape:
            return False
        return self.bits == 16 or (slot.size >= MIN_SIZE and block_of(slot.shape) >= MIN_BLOCK)


def _on_slots(function: Callable[..., Any], state: Any, *others: Any) -> Any:
    """`state` with `function(step, position, slot, ...)` in place of each slot, but for those that a rule needs exactly; the
    slots of `others`, states of its structure, are given, too. What wrappers keep beside the state of their optimizer, an
    average say, is no slot."""
    if not isinstance(state, OptState):
        return state._replace(optimizer=_on_slots(function, state.optimizer, *(other.optimizer for other in others)))
    exact = {name: getattr(state.slots, name) for name in getattr(state.slots, "_exact", ())}
    apart = [each.slots._replace(**dict.fromkeys(exact)) if exact else each.slots for each in (state, *others)]
    rows = zip(*(jax.tree.leaves(slots, is_leaf=_is_whole) for slots in apart), strict=True)
    new = [
        _on_slots(function, *row) if is_state(row[0]) else function(state.step, position, *row)
        for position, row in enumerate(rows)
    ]
    slots = jax.tree.structure(apart[0], is_leaf=_is_whole).unflatten(new)
    return state._replace(slots=slots._replace(**exact) if exact else slots)


def _is_quantize(node: Any) -> bool:
    return isinstance(node, Quantize)


def _is_whole(node: Any) -> bool:
    return isinstance(node, Coded) or is_state(node)
