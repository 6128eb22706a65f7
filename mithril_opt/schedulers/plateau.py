"""The schedule that follows a metric."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import Factor, decay_rate, number, static, steps
from mithril_opt.core.numerics import saturating_increment, scalar_f32
from mithril_opt.core.pytree import pytree
from mithril_opt.core.schedule import Schedule, check_choice
from mithril_opt.core.state import exported
from mithril_opt.core.typing import Array, Scalar
from mithril_opt.schedulers.numerics import integer_power

# Worse than any metric, and finite: `jax_debug_infs` stops at an infinity even if it is meant.
WORST = float(jnp.finfo(jnp.float32).max)


@exported
class PlateauState(NamedTuple):
    """What a `ReduceLROnPlateau` remembers, in the optimizer's state.

    Attributes:
        best: float32 scalar, the best metric so far; ±the largest float32 number before the first one.
        num_bad_epochs: int32 scalar, observations since the last better one.
        cooldown_counter: int32 scalar, observations that are still to be ignored.
        num_reductions: int32 scalar, how often the rate was reduced.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, ReduceLROnPlateau
        >>> optimizer = SGD(learning_rate=ReduceLROnPlateau(1.0))
        >>> state = optimizer.observe(optimizer.init(jnp.zeros(3)), 0.5)
        >>> state.schedules["learning_rate"].best
        Array(0.5, dtype=float32)
    """

    best: Array
    num_bad_epochs: Array
    cooldown_counter: Array
    num_reductions: Array


@pytree
class ReduceLROnPlateau(Schedule):
    """Multiply the rate by `factor` when a metric has stopped improving (`torch.optim.lr_scheduler.ReduceLROnPlateau`).

    It is fed with `state = optimizer.observe(state, metric)`, inside or outside `jax.jit`, once per epoch as a rule, and
    remembers what it has seen in `state.schedules`. One observation m:

        better     m < best − threshold · |best|     relative, "min"; with + and > for "max"
                   m < best − threshold              absolute
        then       best ← m, bad ← 0                 otherwise bad ← bad + 1
        cooling    cooldown > 0:                     cooldown ← cooldown − 1, bad ← 0
        reduced    bad > patience:                   η ← max(η · factor, min_lr) if that is more than eps lower;
                                                     cooldown ← as given, bad ← 0

    As in PyTorch for metrics ≥ 0. For negative ones PyTorch's relative test takes a metric that stands still for a better one
    and never reduces; |best| mends that. A metric that is not finite is no observation: it changes nothing.

    Args:
        base_lr: the rate before the first reduction.
        mode: "min" or "max": which metrics are better.
        factor: in [0, 1).
        patience: number of observations without improvement that are tolerated, ≥ 0.
        threshold: how much better is better, ≥ 0.
        threshold_mode: "rel" or "abs".
        cooldown: number of observations after a reduction in which nothing counts as bad, ≥ 0.
        min_lr: the rate is not reduced below it.
        eps: a reduction by no more than this is not made.

    Raises:
        ValueError: another mode, or a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, ReduceLROnPlateau
        >>> optimizer = SGD(learning_rate=ReduceLROnPlateau(1.0, factor=0.5, patience=1))
        >>> state = optimizer.init(jnp.zeros(3))
        >>> for validation_loss in (0.7, 0.6, 0.6, 0.6):
        ...     state = optimizer.observe(state, validation_loss)
        >>> optimizer.get_learning_rate(state)
        Array(0.5, dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    mode: str = static(default="min")
    factor: Factor = decay_rate(default=0.1)
    patience: int | Array = steps(default=10, minimum=0)
    threshold: Scalar = number(default=1e-4, minimum=0)
    threshold_mode: str = static(default="rel")
    cooldown: int | Array = steps(default=0, minimum=0)
    min_lr: Scalar = number(default=0.0, minimum=0)
    eps: Scalar = number(default=1e-8, minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "mode", ("min", "max"))
        check_choice(self, "threshold_mode", ("rel", "abs"))

    def init(self) -> PlateauState:
        worst = jnp.float32(WORST if self.mode == "min" else -WORST)
        counters = (jnp.zeros((), jnp.int32) for _ in range(3))  # three buffers: one given thrice could not be donated
        return PlateauState(worst, *counters)

    def observe(self, memory: PlateauState, metric: Any, step: Any) -> PlateauState:
        metric = scalar_f32(metric)
        if metric.shape:
            raise ValueError(f"ReduceLROnPlateau: a metric is a scalar, got an array of shape {metric.shape}")
        better, finite = self._better(metric, memory.best), jnp.isfinite(metric)
        cooling = memory.cooldown_counter > 0
        bad = jnp.where(better | cooling, 0, saturating_increment(memory.num_bad_epochs))
        fires = bad > self.patience
        remaining = memory.cooldown_counter - cooling.astype(jnp.int32)
        seen = PlateauState(
            best=jnp.where(better, metric, memory.best),
            num_bad_epochs=jnp.where(fires, 0, bad),
            cooldown_counter=jnp.where(fires, self.cooldown, remaining),
            num_reductions=memory.num_reductions + (fires & self._lowers(memory.num_reductions)).astype(jnp.int32),
        )
        return PlateauState(*(jnp.where(finite, new, old) for new, old in zip(seen, memory, strict=True)))

    def value_given(self, step: Array, memory: PlateauState) -> Array:
        return self._rate(memory.num_reductions)

    def _better(self, metric: Array, best: Array) -> Array:
        unseen = jnp.abs(best) >= WORST
        known = jnp.where(unseen, 0, best)
        margin = self.threshold * jnp.abs(known) if self.threshold_mode == "rel" else self.threshold
        return unseen | (metric < known - margin if self.mode == "min" else metric > known + margin)

    def _lowers(self, reductions: Array) -> Array:
        """Whether one more reduction lowers the rate by more than eps."""
        return self._rate(reductions) - self._rate(reductions + 1) > self.eps

    def _rate(self, reductions: Array) -> Array:
        reduced = jnp.maximum(integer_power(self.factor, reductions, self.base_lr), self.min_lr)
        return jnp.where(reductions == 0, self.base_lr, reduced)
