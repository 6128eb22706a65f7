"""Warm up, stay, decay."""

import jax.numpy as jnp

from mithril_opt.core.fields import Factor, number, static, steps
from mithril_opt.core.pytree import pytree
from mithril_opt.core.schedule import Schedule, check_choice
from mithril_opt.core.typing import Array, Scalar
from mithril_opt.schedulers.numerics import half_cosine, half_wave, ratio

SHAPES = ("linear", "cosine", "1-sqrt")


@pytree
class WarmupStableDecayLR(Schedule):
    """η(k) = base_lr · (r + (1 − r) f): up in W steps, level for S, down in D, then base_lr · r (Hu et al. 2024, as
    `get_wsd_schedule` of transformers has it).

        warm-up, x = k / W            linear  f = x        cosine  f = ½ (1 − cos(π x))          1-sqrt  f = 1 − √(1 − x)
        level                         f = 1
        decay, x = (k − W − S) / D    linear  f = 1 − x    cosine  f = ½ (1 + cos(2π c x))       1-sqrt  f = 1 − √x
        after it                      f = 0

    Args:
        base_lr: the rate on the level.
        num_warmup_steps: W ≥ 0.
        num_stable_steps: S ≥ 0.
        num_decay_steps: D ≥ 0.
        warmup_type: "linear", "cosine" or "1-sqrt".
        decay_type: the same.
        min_lr_ratio: r in [0, 1]; the warm-up starts there too.
        num_cycles: c ≥ 0, the number of waves of a cosine decay; ½ for one fall.

    Raises:
        ValueError: another type, or a Python number is out of its range.

    Example:
        >>> from mithril_opt import WarmupStableDecayLR
        >>> schedule = WarmupStableDecayLR(1.0, 4, 10, 4, decay_type="1-sqrt", min_lr_ratio=0.5)
        >>> schedule([0, 2, 4, 14, 15, 18])
        Array([0.5 , 0.75, 1.  , 1.  , 0.75, 0.5 ], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    num_warmup_steps: int | Array = steps(minimum=0)
    num_stable_steps: int | Array = steps(minimum=0)
    num_decay_steps: int | Array = steps(minimum=0)
    warmup_type: str = static(default="linear")
    decay_type: str = static(default="cosine")
    min_lr_ratio: Scalar = number(default=0.0, minimum=0, maximum=1)
    num_cycles: Factor = number(default=0.5, minimum=0, maximum=10_000, exact=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "warmup_type", SHAPES)
        check_choice(self, "decay_type", SHAPES)

    def value(self, step: Array) -> Array:
        local = jnp.maximum(step - self.num_warmup_steps, 0)  # one subtraction at a time: their sum may exceed an int32
        falling = self._decay(jnp.maximum(local - self.num_stable_steps, 0))
        factor = jnp.where(step < self.num_warmup_steps, self._warmup(step), falling)
        return self.base_lr * (factor + self.min_lr_ratio * (1 - factor))

    def _warmup(self, step: Array) -> Array:
        done = jnp.minimum(step, self.num_warmup_steps)
        x = ratio(done, self.num_warmup_steps)
        if self.warmup_type == "1-sqrt":
            return x / (1 + jnp.sqrt(ratio(self.num_warmup_steps - done, self.num_warmup_steps)))
        return x if self.warmup_type == "linear" else half_wave(x)

    def _decay(self, step: Array) -> Array:
        left = self.num_decay_steps - jnp.minimum(step, self.num_decay_steps)
        rest = ratio(left, self.num_decay_steps)
        if self.decay_type == "1-sqrt":
            return rest / (1 + jnp.sqrt(1 - rest))
        if self.decay_type == "linear":
            return rest
        wave = half_cosine(step, jnp.maximum(self.num_decay_steps, 1), self.num_cycles)
        return jnp.where(step < self.num_decay_steps, wave, 0.0)
