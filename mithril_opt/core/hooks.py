"""What wrappers, the trainer and `explain` ask of an optimizer besides its updates, with the answers of a plain rule."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mithril_opt.core.state import Seen, check_state
from mithril_opt.core.typing import Array, PyTree


class Hooks:
    """Questions to an optimizer. A wrapper hands them on, and answers those that it is about."""

    # For `migrate`: which of its slots mu and nu are the averages of the gradients and of their squares, from 0 on; by which of
    # its slots a step is divided that the clock corrects for that 0; whether a widened leaf keeps the slots of its old rows.
    moments: ClassVar[tuple[str, ...]] = ()
    bias_corrected: ClassVar[tuple[str, ...]] = ()
    resizable: ClassVar[bool] = True

    def clock(self, state: Any) -> Array:
        """The number of updates applied so far, which the schedules see: int32 scalar."""
        check_state(self, state)
        return state.step

    @property
    def group_names(self) -> list[str]:
        """The names of the groups inside, "a/b" for a nested one; an empty one where there are none."""
        return [""]

    def tell(self, state: Any, seen: Seen | None) -> Any:
        """The state, told what the trainer has seen of the gradients of the next update, or, after it, None; the same unless
        that is recorded."""
        return state

    def recorded(self, state: Any) -> Any:
        """The outermost `Record` and its state; None if there is none."""
        return None

    def clips(self, state: Any, seen: Seen) -> Array:
        """Whether gradients of which this much is known are clipped by their norm: boolean scalar."""
        return jnp.bool(False)

    def owns_updates(self, changer: str) -> str | None:
        """Why the wrapper `changer` may not change the updates, and what to write instead, where the state counts on the
        parameters moving by its very updates; None where it does not."""
        return None

    def unpack(self, state: Any) -> Any:
        """`state` with its slots as the rules compute with them: those that are stored in fewer bits in float32."""
        return state

    def pack(self, state: Any) -> Any:
        """`state`, whose slots are as the rules compute with them, as this optimizer stores it."""
        return state

    def unmatched(self, params: PyTree) -> list[Any]:
        """The globs and regular expressions in lists of patterns that match no leaf of `params`: perhaps they are misspelt."""
        return []

    def around(self, params: PyTree) -> list[tuple[Any, ...]]:
        """For each leaf of `params` what is around the rule that it belongs to, the outermost first: pairs of a wrapper and the
        factor that it has for the rate of this leaf, a number, a schedule or None."""
        return [() for _ in jax.tree.leaves(params)]
