"""Adam, and Adam with decoupled weight decay."""

from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import AxesOrFunction, DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_zeros, safe_divide, safe_sqrt, zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.reductions import unit_mean
from mithril_opt.core.state import BETAS_AND_EPS, Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class AdamSlots(NamedTuple):
    """First moment m, second moment v, and with AMSGrad the largest v so far; float32."""

    mu: Array
    nu: Array
    nu_max: Array | None


@pytree
class Adam(LeafOptimizer):
    """Adam (Kingma & Ba 2015, Algorithm 1), with L2 regularization and AMSGrad (Reddi et al. 2018).

        g ← g + λ p                      coupled weight decay
        m ← β₁ m + (1 − β₁) g            m̂ = m / (1 − β₁ᵗ)
        v ← β₂ v + (1 − β₂) g²           v̂ = v / (1 − β₂ᵗ)       (AMSGrad: the largest v so far, then corrected)
        p ← p − η m̂ / (√v̂ + ε)

    Moments and arithmetic are float32 (float64 for float64 parameters), whatever the dtype of the parameters. For a complex
    parameter g² is |g|². `weight_decay` is added to the gradient; for the decoupled form see `AdamW`. A gradient above 1.8e19
    leaves v infinite, and its element where it is from then on.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in [0, 1), the decay rate of the second moment.
        epsilon: ε ≥ 0, outside the square root, after the bias correction.
        weight_decay: λ ≥ 0; 0.0 switches it off.
        amsgrad: divide by the largest second moment so far, as PyTorch does.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import Adam
        >>> optimizer = Adam(learning_rate=0.1)
        >>> params = {"w": jnp.array([1.0, 2.0])}
        >>> state = optimizer.init(params)
        >>> params, state = optimizer.update(params, {"w": jnp.array([0.5, -0.5])}, state)
        >>> params["w"]
        Array([0.9, 2.1], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=1e-3, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9)
    beta2: DecayRateOrSchedule = decay_rate(default=0.999)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    amsgrad: bool = static(default=False)
    decay_mask: DecayMask | None = static(default=None)

    unit_steps: ClassVar = True
    moments: ClassVar = ("mu", "nu")
    bias_corrected: ClassVar = ("nu",)
    decoupled_weight_decay: ClassVar = False

    @property
    def torch(self) -> Counterpart:
        slots = {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"}
        values = {"decoupled_weight_decay": self.decoupled_weight_decay}
        fields = {**BETAS_AND_EPS, "amsgrad": "amsgrad"}
        return Counterpart(type(self).__name__, slots, frozenset({"amsgrad"}), values, fields=fields)

    @property
    def optax(self) -> Counterpart | None:
        # With AMSGrad optax keeps the largest bias-corrected moment, which means something else.
        return None if self.amsgrad else Counterpart("ScaleByAdamState", {"mu": "mu", "nu": "nu"})

    def init_leaf(self, param: Array) -> AdamSlots:
        return AdamSlots(mu=zeros(param), nu=real_zeros(param), nu_max=real_zeros(param) if self.amsgrad else None)

    def update_leaf(self, param: Array, grad: Array, slots: AdamSlots, t: Array) -> tuple[Array, AdamSlots]:
        if self.weight_decay is not None:
            grad = grad + self.weight_decay * param
        m_hat, v_hat, slots = self._moments(grad, slots, t)
        return self.learning_rate * safe_divide(m_hat, safe_sqrt(v_hat) + self.epsilon), slots

    def _moments(self, grad: Array, slots: AdamSlots, t: Array) -> tuple[Array, Array, AdamSlots]:
        """m̂ and v̂, and the new moments."""
        m = ema(self.beta1, slots.mu, grad)
        v = ema(self.beta2, slots.nu, abs_sq(grad))
        v_max = v if slots.nu_max is None else jnp.maximum(slots.nu_max, v)
        m_hat = m / self.beta1.one_minus_power(t)
        v_hat = v_max / self.beta2.one_minus_power(t)
        return m_hat, v_hat, AdamSlots(m, v, None if slots.nu_max is None else v_max)


@pytree
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2, with the schedule multiplier in η).

        m ← β₁ m + (1 − β₁) g            m̂ = m / (1 − β₁ᵗ)
        v ← β₂ v + (1 − β₂) g²           v̂ = v / (1 − β₂ᵗ)       (AMSGrad: the largest v so far, then corrected)
        u = m̂ / (√v̂ + ε)
        p ← p − η (u + λ p)

    The decay uses the parameter before the update and stays out of the moments. All else is as in `Adam`; where v is infinite
    the decay goes on, and with `update_clip` the leaf becomes NaN. The variants:

        nesterov             m̂ = β₁ m / (1 − β₁ᵗ⁺¹) + (1 − β₁) g / (1 − β₁ᵗ)            (Dozat 2016)
        cautious             u ← u / max(mean[u g > 0], 10⁻³) where u g > 0, 0 elsewhere    (Liang et al. 2024)
        cautious_decay       λ p where u p ≥ 0, 0 elsewhere                             (Chen et al. 2025)
        update_clip          η ← η / max(1, ρ / c) with ρ² = mean g² / max(v̂, ε²)        (StableAdamW, Wortsman et al. 2023)
        decay="full"         (η / η_max) λ p in the place of η λ p
        decay="corrected"    (η² / η_max) λ p, for layers that a norm follows           (AdamC, Defazio 2025)

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).
        epsilon: ε ≥ 0.
        weight_decay: λ ≥ 0; 0.0 switches it off.
        amsgrad: divide by the largest second moment so far.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.
        nesterov: look ahead along the first moment.
        cautious: leave out what goes against the gradient.
        cautious_decay: leave out the decay that goes against the step.
        update_clip: c > 0, the largest ρ; None for no bound.
        decay: "rate", "full" or "corrected".
        max_learning_rate: η_max > 0, the largest η of the run; for "full" and "corrected" alone.
        unit_axes: the axes that count the layers stacked in a leaf, an axis, a tuple, or `(path, leaf) -> axes`; each layer has
            its own means. None for a leaf that is one layer.

    Raises:
        ValueError: a Python number is out of its range, `decay` is none of the three, `max_learning_rate` is missing or has no
            use, or a leaf has no such axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AdamW
        >>> optimizer = AdamW(learning_rate=0.1, weight_decay=0.1, decay_mask=lambda path, leaf: leaf.ndim > 1)
        >>> params = {"w": jnp.ones((1, 2)), "b": jnp.ones(2)}
        >>> grads = {"w": jnp.ones((1, 2)), "b": jnp.ones(2)}
        >>> params, state = optimizer.update(params, grads, optimizer.init(params))
        >>> params["w"], params["b"]
        (Array([[0.89, 0.89]], dtype=float32), Array([0.9, 0.9], dtype=float32))
    """

    weight_decay: ScalarOrSchedule = number(default=0.01, minimum=0, off=True, masked=True)
    nesterov: bool = static(default=False)
    cautious: bool = static(default=False)
    cautious_decay: bool = static(default=False)
    update_clip: ScalarOrSchedule = number(default=None, above=0, optional=True)
    decay: Literal["rate", "full", "corrected"] = static(default="rate")
    max_learning_rate: ScalarOrSchedule = number(default=None, above=0, optional=True)
    unit_axes: AxesOrFunction = static(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay not in ("rate", "full", "corrected"):
            raise ValueError(f'AdamW: decay must be "rate", "full" or "corrected", got {self.decay!r}')
        if (self.max_learning_rate is None) != (self.decay == "rate"):
            needs = "has no use for" if self.decay == "rate" else "needs"
            raise ValueError(f'AdamW: decay="{self.decay}" {needs} max_learning_rate, got {self.max_learning_rate!r}')

    decoupled_weight_decay: ClassVar = True

    def update_leaf(self, param: Array, grad: Array, slots: AdamSlots, t: Array) -> tuple[Array, AdamSlots]:
        m_hat, v_hat, slots = self._moments(grad, slots, t)
        if self.nesterov:
            m_hat = self._ahead(slots.mu, grad, t)
        u = safe_divide(m_hat, safe_sqrt(v_hat) + self.epsilon)
        if self.cautious:
            uphill = _agreement(m_hat, grad) <= 0  # not of a NaN, which shall not be hidden
            share = unit_mean((~uphill).astype(v_hat.dtype), self.unit_axes)
            u = jnp.where(uphill, 0, u / jnp.maximum(share, 1e-3))
        if self.weight_decay is not None:
            u = u + self._decay_factor * (jnp.where(_agreement(u, param) >= 0, param, 0) if self.cautious_decay else param)
        if self.update_clip is not None:
            ratio = safe_divide(abs_sq(grad), jnp.maximum(v_hat, self.epsilon**2))
            rho = safe_sqrt(unit_mean(ratio, self.unit_axes))
            u = u / jnp.maximum(1, rho / self.update_clip)
        return self.learning_rate * u, slots

    def _ahead(self, m: Array, grad: Array, t: Array) -> Array:
        """m̂ one update ahead, as if this gradient came again."""
        beta = self.beta1
        return beta.value * m / beta.one_minus_power(t + 1) + beta.complement * grad / beta.one_minus_power(t)

    @property
    def _decay_factor(self) -> Array:
        """What η is multiplied by in the decay of p."""
        if self.decay == "rate":
            return self.weight_decay
        return self.weight_decay * (1 if self.decay == "full" else self.learning_rate) / self.max_learning_rate


def _agreement(x: Array, y: Array) -> Array:
    """A number whose sign is that of x y, or for complex numbers of Re(x̄ y), and which cannot underflow as they may."""
    return jnp.real(jnp.conj(jnp.sign(x)) * jnp.sign(y))
