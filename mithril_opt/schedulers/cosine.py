"""Schedules along a cosine."""

import jax
import jax.numpy as jnp

from mithril_opt.core.fields import Factor, number, steps
from mithril_opt.core.numerics import scalar_f32
from mithril_opt.core.pytree import pytree
from mithril_opt.core.schedule import MAX_STEP, Schedule
from mithril_opt.core.typing import Array, Scalar
from mithril_opt.schedulers.numerics import between, half_cosine, half_wave, multiple_divmod, ratio


@pytree
class CosineAnnealingLR(Schedule):
    """η(k) = η_min + (base_lr − η_min) · ½ (1 + cos(π k / T_max)) (`torch.optim.lr_scheduler.CosineAnnealingLR`, closed form).

    It rises again after `T_max` and is back at `base_lr` at `2 T_max`, as PyTorch's does. For a cosine that stays at its end
    value see `CosineDecayLR` and `WarmupCosLR`.

    Args:
        base_lr: the rate at k = 0.
        T_max: steps from `base_lr` to `eta_min`, ≥ 1.
        eta_min: η_min, the rate at k = T_max.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import CosineAnnealingLR
        >>> CosineAnnealingLR(1.0, T_max=10, eta_min=0.5)([0, 10, 20])
        Array([1. , 0.5, 1. ], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    T_max: int | Array = steps()
    eta_min: Scalar = number(default=0.0, minimum=0)

    def value(self, step: Array) -> Array:
        turns, place = jnp.divmod(step, self.T_max)
        done = jnp.where(turns % 2 == 0, place, self.T_max - place)
        return between(self.base_lr, self.eta_min, done, self.T_max - done, half_wave)

    def rises_again(self, steps: int) -> int:
        return _rises(steps / int(self.T_max))


@pytree
class CosineDecayLR(Schedule):
    """η(k) = min_lr + (base_lr − min_lr) · ½ (1 + cos(π k / D)) for k < D, then `min_lr`: a cosine that stays at its end value.

    Args:
        base_lr: the rate at k = 0.
        decay_steps: D ≥ 1, the steps from `base_lr` to `min_lr`; a warm-up before it does not count.
        min_lr: the rate from k = D on.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import CosineDecayLR
        >>> CosineDecayLR(1.0, decay_steps=10, min_lr=0.5)([0, 10, 20])
        Array([1. , 0.5, 0.5], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    decay_steps: int | Array = steps()
    min_lr: Scalar = number(default=0.0, minimum=0)

    def value(self, step: Array) -> Array:
        done = jnp.minimum(step, self.decay_steps)
        return between(self.base_lr, self.min_lr, done, self.decay_steps - done, half_wave)


@pytree
class CosineAnnealingWarmRestarts(Schedule):
    """η(k) = η_min + (base_lr − η_min) · ½ (1 + cos(π T_cur / T_i)) in cycles of T_i = T_0 · T_multⁱ steps, T_cur steps after
    the start of the i-th (Loshchilov & Hutter 2017; `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`).

    The boundaries of the cycles are integers, found by counting and not with a logarithm.

    Args:
        base_lr: the rate at the start of every cycle.
        T_0: steps of the first cycle, ≥ 1.
        T_mult: the factor from one cycle's length to the next's, an integer ≥ 1.
        eta_min: η_min, which the end of every cycle approaches.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import CosineAnnealingWarmRestarts
        >>> CosineAnnealingWarmRestarts(1.0, T_0=2, T_mult=2)([0, 1, 2, 4, 6]).round(3)
        Array([1. , 0.5, 1. , 0.5, 1. ], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    T_0: int | Array = steps()
    T_mult: int | Array = steps(default=1)
    eta_min: Scalar = number(default=0.0, minimum=0)

    def value(self, step: Array) -> Array:
        done, left = _place_in_cycle(step, self.T_0, self.T_mult)
        return between(self.base_lr, self.eta_min, done, left, half_wave)


@jax.jit
def _place_in_cycle(step: Array, first: Array, multiple: Array) -> tuple[Array, Array]:
    """How many steps of its cycle lie behind `step`, and how many before it; float32."""
    growing, length, true_length = step, first, scalar_f32(first)
    for _ in range(31):  # cycles that at least double: the 32nd starts beyond the largest step
        over = growing >= length
        growing = jnp.where(over, growing - length, growing)
        true_length = jnp.where(over, true_length * scalar_f32(multiple), true_length)
        fits = length <= MAX_STEP // multiple
        length = jnp.where(over, jnp.where(fits, length * multiple, MAX_STEP), length)
    done = jnp.where(multiple == 1, step % first, growing)
    left = jnp.where(multiple == 1, first, length) - done
    return scalar_f32(done), jnp.where(true_length < 2.0**31, scalar_f32(left), true_length - scalar_f32(done))


@pytree
class CosineCyclesLR(Schedule):
    """η(k) = min_lr + (base_lr − min_lr) · ½ (1 + cos(2π c k / D)): what transformers' cosines do after the warm-up.

    With c = ½ it falls to `min_lr` at k = D and **rises again** after it, as in transformers. `CosineDecayLR` stays at its end
    value.

    Args:
        base_lr: the rate at k = 0.
        decay_steps: D ≥ 1, the steps in which the c cycles run.
        num_cycles: c ≥ 0, the number of waves.
        min_lr: the rate in the trough of a wave.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import CosineCyclesLR
        >>> CosineCyclesLR(1.0, decay_steps=10, num_cycles=1.5)([0, 10])
        Array([1., 0.], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    decay_steps: int | Array = steps()
    num_cycles: Factor = number(default=0.5, minimum=0, maximum=10_000, exact=True)
    min_lr: Scalar = number(default=0.0, minimum=0)

    def value(self, step: Array) -> Array:
        height = half_cosine(step, self.decay_steps, self.num_cycles)
        return self.base_lr * height + self.min_lr * (1 - height)

    def rises_again(self, steps: int) -> int:
        half_waves = 2 * float(self.num_cycles.value)
        return max(0, _rises(half_waves * steps / int(self.decay_steps)) - _rises(half_waves))


def _rises(half_waves: float) -> int:
    """How often a cosine has risen in so many half waves: every second of them, of which the first quarter does not count."""
    return max(0, int((half_waves + 0.75) // 2))


@pytree
class CosineHardRestartsLR(Schedule):
    """η(k) = base_lr · ½ (1 + cos(π (c k / D mod 1))) for k < D, then 0: what
    `get_cosine_with_hard_restarts_schedule_with_warmup` does after the warm-up.

    Args:
        base_lr: the rate at the start of every cycle.
        decay_steps: D ≥ 1, the steps in which the c cycles run.
        num_cycles: c ≥ 1, an integer.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import CosineHardRestartsLR
        >>> CosineHardRestartsLR(1.0, decay_steps=8, num_cycles=2)([0, 2, 4, 6, 8]).round(3)
        Array([1. , 0.5, 1. , 0.5, 0. ], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    decay_steps: int | Array = steps()
    num_cycles: int | Array = steps(default=1)

    def value(self, step: Array) -> Array:
        place = jnp.minimum(step, self.decay_steps - 1)
        _, done = multiple_divmod(self.num_cycles, place, self.decay_steps)
        factor = half_wave(ratio(self.decay_steps - done, self.decay_steps))
        return self.base_lr * jnp.where(step < self.decay_steps, factor, 0.0)
