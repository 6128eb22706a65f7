"""A record of the last updates, in the state."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mithril_opt.core.fields import count, static, steps
from mithril_opt.core.norm import first_bad_leaf, norm_of, norms_of_step
from mithril_opt.core.numerics import saturating_increment
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree, set_field
from mithril_opt.core.state import BAD_INPUT, OVERFLOW, Seen, exported
from mithril_opt.core.table import Table
from mithril_opt.core.tree import leaves_with_paths, trained
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.core.updates import plain
from mithril_opt.wrappers.base import StatefulWrapper, Wrapper
from mithril_opt.wrappers.clip import Clip
from mithril_opt.wrappers.multi import MultiOptimizer

WAITING = 3
OUTCOMES = {0: "applied", BAD_INPUT: "bad input", OVERFLOW: "overflow", WAITING: "accumulated"}


@exported
class Row(NamedTuple):
    """One update, or an array of them: of the state of `Record`, and by no means of each step.

    Attributes:
        step: int32, the number of updates applied before it.
        rates: float32[n], the learning rates in the alphabetical order of their groups.
        grad_norm: float32, the norm of the gradients before any clipping.
        update_norm: float32, that of what was added to the parameters.
        param_norm: float32, that of the parameters before it; NaN of an update that was skipped.
        clipped: bool, whether the gradients were clipped by their norm, as far as that is known.
        verdict: int32, 0 if it was applied, or why it was not.
        bad_leaf: int32, the position of the first leaf whose gradient is not finite; −1 if all are.
    """

    step: Array
    rates: Array | None
    grad_norm: Array
    update_norm: Array
    param_norm: Array
    clipped: Array
    verdict: Array
    bad_leaf: Array


@exported
class RecordState(NamedTuple):
    """What the next update needs, and what the last ones did.

    Attributes:
        optimizer: the state of the inner optimizer.
        history: the last rows, in arrays as long as there is room, which are written in turn.
        rows: int32 scalar, how many have been written in all.
        seen: within a step of a trainer what that has seen of the gradients; else None.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Record
        >>> optimizer, params = Record(SGD(), size=2), jnp.array([3.0, 4.0])
        >>> params, state = optimizer.update(params, params, optimizer.init(params))
        >>> state.history.grad_norm
        Array([5., 0.], dtype=float32)
    """

    optimizer: Any
    history: Row
    rows: Array
    seen: Seen | None


@pytree
class Record(StatefulWrapper):
    """An optimizer that keeps a record of its last updates in its state: step, rates, norms, what was clipped and what skipped.

    What it writes down the step has computed: under the trainer the norm of the gradients is the trainer's, before it clips,
    and `Record(Clip(…))` shares the norm that clips. Put it outside of what clips. The record is in the state, so it survives
    a crash of the loop, goes into a checkpoint, and costs no transfer in the step; `read_record` makes a table of it,
    `plot_record` a picture. A skipped step changes nothing else, but is recorded, with the reason. Inside `Accumulate` it sees
    the windows that are applied, and nothing of one that is dropped.

    In a group of a `MultiOptimizer` it is about the gradients of that group as they reach it, and of what was skipped knows the
    reason alone; around one it does not know what a `Clip` in a group does, nor what one behind other changes of the gradients,
    as that of the mean inside `Accumulate`.

    Args:
        optimizer: the inner optimizer.
        every: record the updates whose step this divides, and all that are skipped; ≥ 1.
        size: how many rows there is room for, ≥ 1; each new one then takes the place of the oldest.

    Raises:
        ValueError: `every` or `size` is no such integer.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Clip, Record, read_record
        >>> optimizer = Record(Clip(SGD(learning_rate=0.5), clip_norm=1.0), size=2)
        >>> params, state = jnp.array([3.0, 4.0]), optimizer.init(jnp.zeros(2))
        >>> for gradient in ([0.0, 4.0], [0.0, 0.5], [0.0, 2.0]):
        ...     params, state = optimizer.update(params, jnp.array(gradient), state)
        >>> read_record(optimizer, state)
        step  learning_rate  gradient norm  update norm  parameter norm    ratio  clipped  outcome  first bad leaf
           1            0.5            0.5         0.25            4.61  0.05423  no       applied  -
           2            0.5              2          0.5           4.423    0.113  yes      applied  -
    """

    optimizer: Optimizer
    every: int | Array = steps(default=1)
    size: int = static(default=64)

    def __post_init__(self) -> None:
        super().__post_init__()
        set_field(self, "size", count(self.size, "Record: size"))

    @property
    def state_type(self) -> type:
        return RecordState

    def init(self, params: PyTree) -> RecordState:
        inner = self.optimizer.init(params)
        empty = self._row(inner, Seen.nothing(), jnp.float32(0), jnp.float32(0), jnp.int32(0))
        history = jax.tree.map(lambda value: jnp.zeros((self.size, *value.shape), value.dtype), empty)
        return RecordState(inner, history, jnp.zeros((), jnp.int32), None)

    def tell(self, state: RecordState, seen: Seen | None) -> RecordState:
        return super().tell(state, seen)._replace(seen=seen)

    def compute_updates(
        self, params: PyTree, grads: PyTree, state: RecordState, **extra_args: Any
    ) -> tuple[PyTree, RecordState]:
        inner, window = self.inner(state), self.window(state)
        seen = self._seen(params, grads) if state.seen is None else state.seen
        updates, after = super().compute_updates(params, grads, state, **extra_args)
        norms = norms_of_step(params, plain(updates))
        verdict = jnp.where(window.closes, window.verdict, WAITING)
        return updates, self._written(after, self._row(inner, seen, *norms, verdict))

    def skip(self, state: RecordState, verdict: Array) -> RecordState:
        seen = Seen.nothing()._replace(norm=jnp.float32(jnp.nan)) if state.seen is None else state.seen
        row = self._row(self.inner(state), seen, jnp.float32(0), jnp.float32(jnp.nan), verdict)
        return self._written(super().skip(state, verdict), row)

    def recorded(self, state: RecordState) -> Any:
        return self, state

    def _seen(self, params: PyTree, grads: PyTree) -> Seen:
        grads = self.drop_frozen(params, grads)
        norm = norm_of(grads)
        return Seen(norm.value, jnp.bool(False), first_bad_leaf(params, grads, norm.finite))

    def _row(self, inner: Any, seen: Seen, update_norm: Array, param_norm: Array, verdict: Array) -> Row:
        rates = [rate for _, rate in sorted(self.optimizer.learning_rates(inner).items())]
        clipped = seen.clipped | self.optimizer.clips(inner, seen)
        return Row(
            step=jnp.asarray(self.optimizer.clock(inner), jnp.int32),
            rates=jnp.stack(rates) if rates else None,
            **dict(grad_norm=seen.norm, update_norm=update_norm, param_norm=param_norm, clipped=clipped),
            **dict(verdict=jnp.asarray(verdict, jnp.int32), bad_leaf=seen.bad_leaf),
        )

    def _written(self, state: RecordState, row: Row) -> RecordState:
        """`state` with `row` in the place of the oldest, if it is one to be recorded."""
        keep = (row.step % self.every == 0) | (row.verdict == BAD_INPUT) | (row.verdict == OVERFLOW)
        here = keep & (jnp.arange(self.size, dtype=jnp.int32) == state.rows % self.size)

        def write(column: Array, value: Array) -> Array:
            return jnp.where(jnp.expand_dims(here, range(1, column.ndim)), jax.lax.stop_gradient(value)[None], column)

        rows = jnp.where(keep, saturating_increment(state.rows), state.rows)
        return state._replace(history=jax.tree.map(write, state.history, row), rows=rows)

    def rate_names(self, state: RecordState) -> list[str]:
        """What the columns of `state.history.rates` are called."""
        return sorted(self.learning_rates(state))

    def says(self) -> str:
        return f"the last {self.size} updates recorded"


def read_record(optimizer: Any, state: Any, params: PyTree = None) -> Table:
    """What a `Record` has written down, the oldest row first. It reads the state on the host.

    Args:
        optimizer: a `Record`, what is around one, or a trainer.
        state: its state.
        params: the parameters, for the path of the first leaf whose gradient was not finite; without them its position.

    Returns:
        A table with a row for each recorded update; None where nothing is known, as of what a `Clip` inside `Accumulate` did.

    Raises:
        ValueError: there is no `Record` around the optimizer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, MixedPrecisionTrainer, Record, read_record
        >>> trainer, params = MixedPrecisionTrainer(None, Record(SGD()), policy="float32"), {"w": jnp.ones(1)}
        >>> params, state, success = trainer.update(params, {"w": jnp.array([jnp.inf])}, trainer.init(params))
        >>> read_record(trainer, state, params)
        step  learning_rate  gradient norm  update norm  parameter norm  ratio  clipped  outcome   first bad leaf
           0           0.01            inf            0               -      -  no       overflow  w
    """
    record, own = found(optimizer, state)
    names, rows = record.rate_names(own), written(record, own)
    paths = None if params is None else [path for path, _ in leaves_with_paths(trained(params))]
    columns = ("gradient norm", "update norm", "parameter norm", "ratio", "clipped", "outcome", "first bad leaf")
    unknown = _clips_unseen(record.optimizer)
    return Table(("step", *names, *columns), tuple(_cells(row, paths, unknown) for row in rows))


def found(optimizer: Any, state: Any) -> tuple[Record, RecordState]:
    """The outermost `Record` in `optimizer`, and its state."""
    pair = optimizer.recorded(state)
    if pair is None:
        raise ValueError(
            f"{type(optimizer).__name__}: there is no Record around the optimizer, so nothing was written down; one in a "
            "group is read with the optimizer of that group and its state, state.slots[name]"
        )
    return pair


def written(record: Record, state: RecordState) -> list[Row]:
    """The rows of `state` on the host, the oldest first."""
    history, count = jax.device_get((state.history, state.rows))
    places = [i % record.size for i in range(max(0, int(count) - record.size), int(count))]
    return [jax.tree.map(lambda column, i=i: column[i], history) for i in places]


def _clips_unseen(optimizer: Any, seen: bool = True) -> bool:
    """Whether a `Clip` inside goes by the norm of gradients that are not those that were `seen`."""
    if isinstance(optimizer, MultiOptimizer):
        return any(_clips_unseen(inner, False) for inner in optimizer.optimizers.values())
    if not isinstance(optimizer, Wrapper):
        return False
    clips = isinstance(optimizer, Clip) and optimizer.clip_norm is not None
    return (clips and not seen) or _clips_unseen(optimizer.optimizer, seen and optimizer.hands_on_gradients)


def _cells(row: Row, paths: list[str] | None, unknown: bool) -> tuple[Any, ...]:
    """The cells of `row`. Where it is `unknown` what an inner clip does, it is of an update that was applied."""
    gradient, update, param = (float(norm) for norm in (row.grad_norm, row.update_norm, row.param_norm))
    norms = (gradient, update, None if math.isnan(param) else param, update / param if param > 0 else None)
    leaf = int(row.bad_leaf)
    bad = None if leaf < 0 else leaf if paths is None else paths[leaf]
    rates = [] if row.rates is None else [float(rate) for rate in row.rates]
    clipped = "yes" if row.clipped else None if unknown and row.verdict == 0 else "no"
    return (int(row.step), *rates, *norms, clipped, OUTCOMES[int(row.verdict)], bad)
