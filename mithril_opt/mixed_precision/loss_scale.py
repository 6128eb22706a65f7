"""Dynamic loss scaling (Micikevicius et al. 2018), with hysteresis and blame."""

from typing import NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import number, static, steps
from mithril_opt.core.numerics import saturating_increment, scalar_f32
from mithril_opt.core.pytree import check_numbers, pytree
from mithril_opt.core.state import exported
from mithril_opt.core.typing import Array, Scalar


@exported
class LossScaleState(NamedTuple):
    """The scale and what happened to it so far: 0-d arrays, float32 the scale and the norm, int32 the rest.

    Attributes:
        scale: what the next loss gradient is multiplied by.
        good_steps: finite steps since the scale last changed.
        hysteresis: overflows still tolerated before the scale is lowered.
        consecutive_skips: updates skipped since the last one that was applied; a window of accumulation is one update.
        skipped: steps skipped in all, for whatever reason.
        bad_input: steps skipped through no fault of the scale: the loss or a number of the optimizer was not finite, or a
            float16 parameter would have overflowed.
        attempts: steps taken in all, committed or not.
        last_bad_leaf: which leaf of the parameters had the first non-finite gradient when a step was last skipped; −1 if none.
        grad_norm: float32, the norm of the gradients of the last step without bad input, unscaled, not clipped; 0 before it.

    Example:
        >>> from mithril_opt import LossScale
        >>> LossScale(initial=4.0).init().scale
        Array(4., dtype=float32)
    """

    scale: Array
    good_steps: Array
    hysteresis: Array
    consecutive_skips: Array
    skipped: Array
    bad_input: Array
    attempts: Array
    last_bad_leaf: Array
    grad_norm: Array


class LossScaleStuckError(RuntimeError):
    """The loss scale is as low as it may go and steps keep being skipped. `MixedPrecisionTrainer.check` raises it.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, LossScaleStuckError, MixedPrecisionTrainer
        >>> trainer, params = MixedPrecisionTrainer(None, SGD(), loss_scale=1.0), {"w": jnp.ones(1)}
        >>> state = trainer.init(params)
        >>> for _ in range(2):
        ...     params, state, success = trainer.update(params, {"w": jnp.array([jnp.inf])}, state)
        >>> try:
        ...     trainer.check(state, params)
        ... except LossScaleStuckError as error:
        ...     print(str(error)[:60])
        the last 2 updates were skipped at a loss scale of 1, which
    """


@pytree
class LossScale:
    """The rule by which the scale moves.

    After `growth_interval` finite steps in a row the scale grows by `growth_factor`. An overflow lowers it by `backoff_factor`,
    once `hysteresis − 1` overflows since the last growth have been tolerated. A non-finite loss is the fault of the batch: the
    step is skipped, the scale and its counters stay. For hysteresis 1 this is `torch.amp.GradScaler`, with bounds.

    Args:
        initial: the first scale.
        dynamic: whether it moves at all.
        growth_factor: > 1.
        backoff_factor: in (0, 1).
        growth_interval: finite steps between two growths, ≥ 1.
        minimum: the scale never falls below; ≥ 2⁻¹²⁶, the smallest normal float32.
        maximum: nor rises above; ≤ 2¹²⁶, whose reciprocal is still a normal float32.
        hysteresis: the h-th overflow since the last growth is the first to lower the scale; ≥ 1.
        needed: whether gradients are multiplied and divided by the scale at all.

    Raises:
        ValueError: a setting is out of its range, or not minimum ≤ initial ≤ maximum.

    Example:
        >>> from mithril_opt import LossScale
        >>> rule = LossScale(initial=4.0, backoff_factor=0.25, growth_interval=2)
        >>> state = rule.init()
        >>> for finite in (True, True, False):
        ...     state = rule.adjust(state, finite, input_finite=True)
        ...     print(state.scale, state.good_steps)
        4.0 1
        8.0 0
        2.0 0
    """

    initial: Scalar = number(default=2.0**15, above=0)
    dynamic: bool = static(default=True)
    growth_factor: Scalar = number(default=2.0, above=1)
    backoff_factor: Scalar = number(default=0.5, above=0, below=1)
    growth_interval: int | Array = steps(default=2000)
    minimum: Scalar = number(default=1.0, minimum=2.0**-126)
    maximum: Scalar = number(default=2.0**24, above=0, maximum=2.0**126)
    hysteresis: int | Array = steps(default=1)
    needed: bool = static(default=True)

    def __post_init__(self) -> None:
        check_numbers(self, schedules=False)
        bounds = [self.minimum, self.initial, self.maximum]
        if all(isinstance(bound, float) for bound in bounds) and not bounds[0] <= bounds[1] <= bounds[2]:
            raise ValueError(
                "LossScale: needs minimum ≤ initial ≤ maximum (a trainer's min_loss_scale, loss_scale, max_loss_scale), "
                f"got {bounds[0]}, {bounds[1]}, {bounds[2]}"
            )

    def init(self) -> LossScaleState:
        """The state before the first step."""
        zero = jnp.zeros((), jnp.int32)
        return LossScaleState(
            scale=jnp.array(self.initial, jnp.float32),  # a copy, which may be donated
            hysteresis=jnp.array(self.hysteresis, jnp.int32),
            **{name: zero.copy() for name in ("good_steps", "consecutive_skips", "skipped", "bad_input", "attempts")},
            last_bad_leaf=zero - 1,
            grad_norm=jnp.zeros((), jnp.float32),
        )

    def adjust(self, state: LossScaleState, finite: Array | bool, input_finite: Array | bool) -> LossScaleState:
        """The state after an update, or after one that was skipped.

        Args:
            state: the state before it.
            finite: whether it was applied: all gradients, and the loss, were finite.
            input_finite: whether the loss was; if not, the batch is at fault.
        """
        finite, input_finite = jnp.asarray(finite), jnp.asarray(input_finite)
        overflow = ~finite & input_finite
        good_steps = jnp.where(finite, saturating_increment(state.good_steps), state.good_steps)
        grow = finite & (good_steps >= self.growth_interval)
        budget = jnp.where(overflow, jnp.maximum(state.hysteresis - 1, 0), state.hysteresis)
        return state._replace(
            scale=self._moved(state.scale, grow, overflow & (budget == 0)),
            good_steps=jnp.where(grow | overflow, 0, good_steps),
            hysteresis=jnp.where(grow, jnp.asarray(self.hysteresis, jnp.int32), budget),
            consecutive_skips=jnp.where(finite, 0, saturating_increment(state.consecutive_skips)),
        )

    def count(self, state: LossScaleState, finite: Array, input_finite: Array) -> LossScaleState:
        """The state with a step, committed or skipped, counted."""
        more = saturating_increment
        return state._replace(
            skipped=jnp.where(finite, state.skipped, more(state.skipped)),
            bad_input=jnp.where(finite | input_finite, state.bad_input, more(state.bad_input)),
            attempts=more(state.attempts),
        )

    def _moved(self, scale: Array, grow: Array, back: Array) -> Array:
        if not self.dynamic:
            return scale
        up = jnp.minimum(scale * scalar_f32(self.growth_factor), scalar_f32(self.maximum))
        down = jnp.maximum(scale * scalar_f32(self.backoff_factor), scalar_f32(self.minimum))
        return jnp.where(grow, up, jnp.where(back, down, scale))
