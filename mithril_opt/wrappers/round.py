"""bfloat16 parameters that train as float32 ones do."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mithril_opt.core.coding import join, split, thresholds
from mithril_opt.core.fields import static
from mithril_opt.core.numerics import saturating_increment
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.slots import foreign
from mithril_opt.core.state import exported
from mithril_opt.core.tree import aligned, describe_leaf, leaves_with_paths, overlay, trained, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.core.updates import apply_updates, moved
from mithril_opt.wrappers.base import StatefulWrapper, check_no_window


@exported
class RoundState(NamedTuple):
    """The state of `Round`.

    Attributes:
        optimizer: the state of the inner optimizer.
        remainder: tree shaped like the parameters, int16 or int8, what their bfloat16 lacks; None where nothing is kept.
        step: int32 scalar, the number of applied updates.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Round
        >>> Round(SGD()).init({"w": jnp.ones(2, jnp.bfloat16)}).remainder
        {'w': Array([0, 0], dtype=int8)}
    """

    optimizer: Any
    remainder: PyTree
    step: Array


@pytree
class Round(StatefulWrapper):
    """An optimizer whose bfloat16 parameters train as float32 ones do: it sees them in float32 and rounds what it returns.

    With 16 bits beside each parameter the two *are* a float32 number, bit for bit: 4 bytes for weight and master copy. With 8
    bits they are a number of 24 bits, the last of which is dithered; with none the bfloat16 itself is: it becomes the upper of
    two neighbours in the share of steps that keeps its mean right, so that updates far below half a unit are not lost.
    Parameters of other dtypes are as without this wrapper. `eval_params` gives the float32 parameters, for evaluation and
    export.

    Averages of the parameters go inside, `Round(EMA(...))`, where they see all digits. A Schedule-Free rule in
    `Round(..., remainder=0)` needs `keep_x=True`: it would take the rounding of y for a move of x.

    Args:
        optimizer: the inner optimizer; none that accumulates, which goes around this one.
        remainder: bits kept beside each bfloat16 parameter: 16, 8 or 0.

    Raises:
        ValueError: another number of bits, or an optimizer that accumulates; on `init`, float16 parameters.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Round
        >>> optimizer, params = Round(SGD(learning_rate=2.0**-12), remainder=16), jnp.ones(2, jnp.bfloat16)
        >>> params, state = optimizer.update(params, jnp.ones(2, jnp.bfloat16), optimizer.init(params))
        >>> params, optimizer.eval_params(params, state)
        (Array([1, 1], dtype=bfloat16), Array([0.99975586, 0.99975586], dtype=float32))
    """

    optimizer: Optimizer
    remainder: int = static(default=8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remainder not in (0, 8, 16) or isinstance(self.remainder, bool):
            raise ValueError(f"Round: remainder must be 0, 8 or 16, got {self.remainder!r}")
        check_no_window(self)

    @property
    def owns_addition(self) -> bool:
        return True

    def owns_updates(self, changer: str) -> str:
        return f"Round keeps what is left of its very updates: write Round({changer}(...))"

    @property
    def state_type(self) -> type:
        return RoundState

    def init(self, params: PyTree) -> RoundState:
        for path, leaf in leaves_with_paths(trained(params)):
            if jnp.result_type(leaf) == jnp.float16:
                raise ValueError(f"at {path!r}: Round takes no float16, whose sums overflow; train bfloat16 parameters")
        wide = overlay(params, jax.tree.map(widen, trained(params)), params)
        return RoundState(self.optimizer.init(wide), self._fresh(trained(params)), jnp.zeros((), jnp.int32))

    def compute_updates(self, params: PyTree, grads: PyTree, state: RoundState, **extra_args: Any) -> tuple[PyTree, RoundState]:
        wide, step = self._joined(params, state), saturating_increment(state.step)
        updates, inner = self.optimizer.compute_updates(wide, grads, state.optimizer, **extra_args)
        structure = jax.tree.structure(params)
        columns = (structure.flatten_up_to(tree) for tree in (params, apply_updates(wide, updates), state.remainder))
        rows = enumerate(zip(*columns, strict=True))
        rounded = [self._rounded(param, new, rest, step, position) for position, (param, new, rest) in rows]
        new, remainder, steps = (structure.unflatten([row[i] for row in rounded]) for i in range(3))
        return moved(params, steps, new), RoundState(inner, remainder, step)

    def eval_params(self, params: PyTree, state: RoundState) -> PyTree:
        wide = overlay(params, self._joined(trained(params), state), params)
        return self.optimizer.eval_params(wide, self.inner(state))

    def says(self) -> str:
        return f"bfloat16 kept with {self.remainder} bits beside it" if self.remainder else "bfloat16 rounded by dithering"

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        return None if any(jnp.result_type(leaf) == jnp.bfloat16 for _, leaf, _ in leaves) else "no parameter is bfloat16"

    def _fresh(self, params: PyTree) -> PyTree:
        """The remainder of each leaf that moves."""
        dtype = {16: jnp.int16, 8: jnp.int8}.get(self.remainder)

        def empty(leaf: Any) -> Any:
            kept = dtype is not None and jnp.result_type(leaf) == jnp.bfloat16
            return jnp.zeros_like(leaf, dtype=dtype) if kept else None

        return jax.tree.map(empty, self.drop_frozen(params, params))

    def _joined(self, params: PyTree, state: RoundState) -> PyTree:
        """`params` with the bfloat16 ones in float32."""
        try:
            remainders = aligned(params, state.remainder, ("parameter", "remainder in the state"))
        except ValueError as error:
            raise ValueError(foreign(str(error))) from None
        leaves, structure = jax.tree.flatten(params)
        expected = structure.flatten_up_to(jax.eval_shape(self._fresh, params))
        return structure.unflatten([self._wide(*row) for row in zip(leaves, remainders, expected, strict=True)])

    def _wide(self, param: Array, remainder: Array | None, expected: Any) -> Array:
        if jax.tree.map(describe_leaf, expected) != jax.tree.map(describe_leaf, remainder):
            found, wanted = describe_leaf(remainder), describe_leaf(expected)
            raise ValueError(foreign(f"the remainder of {describe_leaf(param)} is {found}, not {wanted}"))
        return join(param, remainder) if jnp.result_type(param) == jnp.bfloat16 else param

    def _rounded(
        self, param: Array, new: Array | None, remainder: Array | None, step: Array, position: int
    ) -> tuple[Array | None, Array | None, Array | None]:
        """The new parameter as it is stored, its remainder, and the update between the two; None, the old remainder and None
        where nothing moves."""
        if new is None:
            return None, remainder, None
        if param.dtype == jnp.bfloat16:
            new, remainder = split(new, self.remainder, thresholds(param.shape, step, salt=position * 0x85EBCA6B))
        return new, remainder, widen(new) - widen(param)
