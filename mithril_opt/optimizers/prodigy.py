"""Prodigy: Adam that finds its own learning rate."""

import math
from typing import Any, NamedTuple, Self

import jax.numpy as jnp

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import (
    abs_sq,
    ema,
    real_zeros,
    safe_divide,
    safe_sqrt,
    saturating_increment,
    scalar_f32,
    widest_real,
    zeros,
)
from mithril_opt.core.pytree import pytree, set_field
from mithril_opt.core.state import OptState, exported
from mithril_opt.core.typing import Array, DecayMask, PyTree


@exported
class ProdigySlots(NamedTuple):
    """First moment m and second moment v of d g, the weighted sum s of the gradients, and the displacement p₀ − p; float32."""

    mu: Array
    nu: Array
    s: Array
    displacement: Array


@exported
class ProdigyShared(NamedTuple):
    """The estimate d that the next update will use, the largest d̂ so far, and the numerator r; float32."""

    d: Array
    d_max: Array
    r: Array


class Scales(NamedTuple):
    """What the leaves need of an update: the d before and after it, and γ = b d η."""

    d: Array
    new_d: Array
    gamma: Array


@pytree
class Prodigy(LeafOptimizer):
    """Prodigy (Mishchenko & Defazio 2023): Adam whose step size d is estimated on the way, one for all parameters.

        γ = b d η                                 b = √(1 − β₂ᵗ) / (1 − β₁ᵗ) with bias_correction, or else 1
        r ← β₃ r + (d/d₀) γ ⟨g, p₀ − p⟩           over all parameters
        s ← β₃ s + (d/d₀) γ g                     d in the place of γ with safeguard_warmup
        m ← β₁ m + (1 − β₁) d g
        v ← β₂ v + (1 − β₂) d² g²
        d̂ = d_coef r / ‖s‖₁
        d ← the largest d̂ so far, at least d₀     and at most growth_rate times the old d
        p ← p − γ (m / (√v + d ε) + λ p)          with the old d in γ, and the new one beside ε

    η stays 1; a schedule multiplies it, and a cosine to 0 is usual. `get_learning_rate` is γ, the size of the steps, and
    `state.shared.d` is d. As long as all gradients are zero, d stays where it is.

    d grows with the distance p₀ − p. Parameters of 16 bits do not move by the first steps of 1e-6, so that it would never grow:
    they are refused; keep them in float32, or as bfloat16 in `Round`. Groups of a `MultiOptimizer` with a Prodigy each have a d
    each. A gradient that is clipped by its norm is another gradient for d, too. Complex parameters are refused.

    Where d g is above 1e18, v is infinite, and its element stays where it is from then on. Where it is below 1e-18, which is
    |g| < 1e-12 at the start, v is 0, and with ε = 0 nothing moves.

    Args:
        learning_rate: η ≥ 0, a factor.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in [0, 1), the decay rate of the second moment.
        beta3: β₃ in [0, 1), the decay rate of the sums; None for √β₂.
        epsilon: ε ≥ 0, outside the square root.
        weight_decay: λ ≥ 0, decoupled; 0.0 switches it off.
        d0: d₀ > 0, the first d; hardly ever worth changing.
        d_coef: a factor of the estimate, > 0: what to tune, if anything.
        growth_rate: how much d may grow in an update, > 1; 1.02 makes for a warm-up. None for no bound.
        bias_correction: correct for the start of the moments, as Adam does.
        safeguard_warmup: keep a warm-up of η out of the estimate. Only for a run with one.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range, or a parameter has 16 bits or is complex; names its path.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import Prodigy
        >>> optimizer, params = Prodigy(), jnp.array([1.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(100):
        ...     params, state = optimizer.update(params, params, state)
        >>> float(state.shared.d) > 0.1, abs(float(params[0])) < 0.5
        (True, True)
    """

    learning_rate: ScalarOrSchedule = number(default=1.0, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9)
    beta2: DecayRateOrSchedule = decay_rate(default=0.999)
    beta3: DecayRateOrSchedule = decay_rate(default=None, optional=True)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    d0: ScalarOrSchedule = number(default=1e-6, above=0)
    d_coef: ScalarOrSchedule = number(default=1.0, above=0)
    growth_rate: ScalarOrSchedule = number(default=None, above=1, optional=True)
    bias_correction: bool = static(default=False)
    safeguard_warmup: bool = static(default=False)
    decay_mask: DecayMask | None = static(default=None)

    def __post_init__(self) -> None:
        if isinstance(self.growth_rate, float) and self.growth_rate == math.inf:
            set_field(self, "growth_rate", None)
        super().__post_init__()

    def for_leaf(self, path: str, param: Any) -> Self:
        dtype = jnp.result_type(param)
        if jnp.issubdtype(dtype, jnp.complexfloating) or jnp.finfo(dtype).bits < 32:
            why = "would not move by its first steps" if jnp.finfo(dtype).bits < 32 else "has no such estimate"
            raise ValueError(f"at {path!r}: Prodigy needs real parameters of 32 bits or more; one of {dtype} {why}")
        return super().for_leaf(path, param)

    def init_leaf(self, param: Array) -> ProdigySlots:
        return ProdigySlots(mu=zeros(param), nu=real_zeros(param), s=zeros(param), displacement=zeros(param))

    def init_shared(self, params: PyTree) -> ProdigyShared:
        dtype = widest_real(params)
        return ProdigyShared(jnp.full((), self.d0, dtype), jnp.full((), self.d0, dtype), jnp.zeros((), dtype))

    def share(
        self, rules: list[Any], params: list[Array], grads: list[Array], slots: list[ProdigySlots], shared: Any, t: Array
    ) -> tuple[ProdigyShared, list[Scales]]:
        d, gamma = shared.d, self._gamma(shared.d, t)
        pairs = list(zip(grads, slots, strict=True))
        products = [jnp.sum(grad * own.displacement) for grad, own in pairs]
        sizes = [jnp.sum(jnp.abs(self._s(grad, own, d, gamma))) for grad, own in pairs]
        product, size = jnp.sum(jnp.asarray([products, sizes], d.dtype), axis=1)
        new = self._estimated(shared, self._beta3 * shared.r + d / self.d0 * gamma * product, size)
        return new, [Scales(d, new.d, gamma)] * len(grads)

    def _estimated(self, shared: ProdigyShared, r: Array, size: Array) -> ProdigyShared:
        """The new estimate, given the new r and ‖s‖₁; what was, if nothing has been seen: d̂ is 0 then."""
        d_hat = self.d_coef * safe_divide(r, size)
        d = d_max = jnp.maximum(shared.d_max, d_hat)
        if self.growth_rate is not None:
            start = jnp.where(shared.d == self.d0, jnp.maximum(shared.d, d_hat), shared.d)  # the first growth is free
            d = jnp.minimum(d_max, start * self.growth_rate)
        return ProdigyShared(d, d_max, r)

    def _gamma(self, d: Array, t: Array) -> Array:
        if not self.bias_correction:
            return d * self.learning_rate
        t = t.astype(d.dtype)
        return jnp.sqrt(self.beta2.one_minus_power(t)) / self.beta1.one_minus_power(t) * d * self.learning_rate

    def _s(self, grad: Array, slots: ProdigySlots, d: Array, gamma: Array) -> Array:
        """The new s."""
        return self._beta3 * slots.s + d / self.d0 * (d if self.safeguard_warmup else gamma) * grad

    @property
    def _beta3(self) -> Any:
        return jnp.sqrt(self.beta2.value) if self.beta3 is None else self.beta3.value

    def update_leaf(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, param: Array, grad: Array, slots: ProdigySlots, t: Array, scales: Scales
    ) -> tuple[Array, ProdigySlots]:
        d, new_d, gamma = scales
        m = ema(self.beta1, slots.mu, d * grad)
        v = ema(self.beta2, slots.nu, abs_sq(d * grad))
        direction = safe_divide(m, safe_sqrt(v) + new_d * self.epsilon)
        if self.weight_decay is not None:
            direction = direction + self.weight_decay * param
        step = gamma * direction
        return step, ProdigySlots(m, v, self._s(grad, slots, d, gamma), slots.displacement + step)

    def owns_updates(self, changer: str) -> str:
        return (
            "Prodigy estimates d from the way that its very updates have come: write a MultiOptimizer, whose groups have a "
            "Prodigy each, or other rules"
        )

    def get_learning_rate(self, state: OptState) -> Array:
        """γ, the size of the steps of the next update: η times d, and corrected for the start with `bias_correction`."""
        rule = self.resolve(state)
        return scalar_f32(rule._gamma(state.shared.d, saturating_increment(state.step)))
