"""The exponential moving average of the parameters."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import DecayRateOrSchedule, decay_rate, static
from mithril_opt.core.numerics import real_dtype, saturating_increment, zeros
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.schedule import Schedule
from mithril_opt.core.slots import check_tree, start_at
from mithril_opt.core.state import exported
from mithril_opt.core.tree import map_leaves, overlay, trained, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.wrappers.base import StatefulWrapper, fresh_beside, moved_params
from mithril_opt.wrappers.words import constant, in_digits


@exported
class EMAState(NamedTuple):
    """What the next update needs.

    Attributes:
        optimizer: the state of the inner optimizer.
        average: a, float32 or wider, a tree shaped like the parameters; None where nothing trains.
        updates: int32 scalar, how many parameters are in the average; None without `debias`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import EMA, SGD
        >>> EMA(SGD()).init({"w": jnp.ones(2, jnp.bfloat16)}).average
        {'w': Array([1., 1.], dtype=float32)}
    """

    optimizer: Any
    average: PyTree
    updates: Array | None


@pytree
class EMA(StatefulWrapper):
    """An optimizer whose `eval_params` are the exponential moving average of its parameters (Polyak & Juditsky 1992).

        a ← a + (1 − δ) (p − a)         after every applied update, p the new parameters
        eval_params = a                 a starts at the first parameters
        eval_params = a / (1 − δᵗ)      with `debias`: a starts at 0, and t parameters are in it

    Training does not depend on it. The average is float32 for narrower parameters, in which it would stand still, and moves
    with a parameter whose gradient is None, too. A skipped step, and a part of an accumulated one, leave it alone. Averages of
    batch normalization are the model's: run some batches with the averaged parameters.

    Args:
        optimizer: the inner optimizer.
        decay: δ in [0, 1), or its schedule: `lambda t: jnp.minimum(0.9999, (1 + t) / (10 + t))` forgets the start sooner.
        debias: start at 0 and correct for it, as the moments of Adam do: for short runs.

    Raises:
        ValueError: `decay` is out of its range, or is a schedule and to be corrected for.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import EMA, SGD
        >>> optimizer = EMA(SGD(learning_rate=1.0), decay=0.75)
        >>> params, state = jnp.array([1.0]), optimizer.init(jnp.array([1.0]))
        >>> params, state = optimizer.update(params, jnp.array([4.0]), state)
        >>> params, optimizer.eval_params(params, state)
        (Array([-3.], dtype=float32), Array([0.], dtype=float32))
    """

    optimizer: Optimizer
    decay: DecayRateOrSchedule = decay_rate(default=0.999)
    debias: bool = static(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.debias and isinstance(self.decay, Schedule):
            raise ValueError("EMA: debias corrects for a constant decay; one that grows from 0 needs no correction")

    @property
    def state_type(self) -> type:
        return EMAState

    def init(self, params: PyTree) -> EMAState:
        average = fresh_beside(self, params, zeros if self.debias else start_at)
        return EMAState(self.optimizer.init(params), average, jnp.zeros((), jnp.int32) if self.debias else None)

    def compute_updates(self, params: PyTree, grads: PyTree, state: EMAState, **extra_args: Any) -> tuple[PyTree, EMAState]:
        check_tree(params, state.average, "average")
        decay, applies = self.numbers(state).decay, self.window(state).applies

        def averaged(a: Array, p: Array) -> Array:
            # Not δ a + (1 − δ) p: float32 holds δ so badly that the average of a constant would drift off by 1e-4.
            return jnp.where(applies, a + decay.complement.astype(real_dtype(a.dtype)) * (widen(p) - a), a)

        updates, state = super().compute_updates(params, grads, state, **extra_args)
        average = map_leaves(averaged, params, state.average, moved_params(params, updates))
        t = None if state.updates is None else jnp.where(applies, saturating_increment(state.updates), state.updates)
        return updates, state._replace(average=average, updates=t)

    def eval_params(self, params: PyTree, state: EMAState) -> PyTree:
        """The average, in the dtypes of `params`; `params` before the first update with `debias`."""
        own, t = super().eval_params(params, state), state.updates

        def read(a: Array, p: Array) -> Array:
            if t is None:
                return a.astype(jnp.result_type(p))
            weight = self.decay.one_minus_power(jnp.maximum(t, 1).astype(real_dtype(a.dtype)))
            return jnp.where(t == 0, p, (a / weight).astype(jnp.result_type(p)))

        check_tree(trained(params), state.average, "average")
        return overlay(params, map_leaves(read, params, state.average, own), own)

    def reads(self) -> str:
        return f"their moving average, decay {in_digits(self.decay)}"

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        return "its decay is 0" if constant(self.decay) == 0 else None
