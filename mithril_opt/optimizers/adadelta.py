"""AdaDelta."""

from typing import ClassVar, NamedTuple

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_zeros, safe_divide, safe_sqrt
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask

# Up to here a rate is one for other rules: AdaDelta's steps have a size of their own.
RATE_OF_ADAM = 1e-2


@exported
class AdaDeltaSlots(NamedTuple):
    """Second moment v of the gradients, second moment a of the steps; float32."""

    nu: Array
    delta_sq: Array


@pytree
class AdaDelta(LeafOptimizer):
    """AdaDelta (Zeiler 2012).

        g ← g + λ p                      coupled weight decay
        v ← ρ v + (1 − ρ) g²
        Δ = √(a + ε) / √(v + ε) · g
        a ← ρ a + (1 − ρ) Δ²             Δ without the rate
        p ← p − η Δ

    The steps have the unit of the parameter, so η is about 1. They start near √ε, 0.003 for the first one, and grow from
    there: a larger ε starts faster, and ε = 0 not at all. For a complex parameter g² is |g|². Gradients above 1e18 leave v
    infinite, and their elements where they are.

    Args:
        learning_rate: η ≥ 0.
        rho: ρ in [0, 1), the decay rate of both moments.
        epsilon: ε ≥ 0, inside both square roots.
        weight_decay: λ ≥ 0; 0.0 switches it off.
        decoupled_weight_decay: subtract η λ p from the parameter instead of adding λ p to the gradient.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AdaDelta
        >>> optimizer = AdaDelta(rho=0.75, epsilon=1e-4)
        >>> params = jnp.array([1.0])
        >>> params, state = optimizer.update(params, jnp.array([3.0]), optimizer.init(params))
        >>> f"{params[0]:.4f}"
        '0.9800'
    """

    learning_rate: ScalarOrSchedule = number(default=1.0, minimum=0)
    rho: DecayRateOrSchedule = decay_rate(default=0.9)
    epsilon: ScalarOrSchedule = number(default=1e-6, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decoupled_weight_decay: bool = static(default=False)
    decay_mask: DecayMask | None = static(default=None)

    moments: ClassVar = ("nu",)

    @property
    def torch(self) -> Counterpart:
        slots, fields = {"nu": "square_avg", "delta_sq": "acc_delta"}, {"rho": "rho", "epsilon": "eps"}
        return Counterpart("Adadelta", slots, frozenset({"rho"}), fields=fields)

    @property
    def optax(self) -> Counterpart:
        return Counterpart("ScaleByAdaDeltaState", {"nu": "e_g", "delta_sq": "e_x"})

    def lints(self, learning_rate: float) -> list[str]:
        found = f"a rate of {learning_rate:.2g} is one for Adam; AdaDelta's is a factor of its steps, about 1"
        return [found] if learning_rate <= RATE_OF_ADAM else []

    def init_leaf(self, param: Array) -> AdaDeltaSlots:
        return AdaDeltaSlots(nu=real_zeros(param), delta_sq=real_zeros(param))

    def update_leaf(self, param: Array, grad: Array, slots: AdaDeltaSlots, t: Array) -> tuple[Array, AdaDeltaSlots]:
        if self.weight_decay is not None and not self.decoupled_weight_decay:
            grad = grad + self.weight_decay * param
        v = ema(self.rho, slots.nu, abs_sq(grad))
        delta = safe_divide(safe_sqrt(slots.delta_sq + self.epsilon), safe_sqrt(v + self.epsilon)) * grad
        a = ema(self.rho, slots.delta_sq, abs_sq(delta))
        direction = delta
        if self.weight_decay is not None and self.decoupled_weight_decay:
            direction = delta + self.weight_decay * param
        return self.learning_rate * direction, AdaDeltaSlots(nu=v, delta_sq=a)
