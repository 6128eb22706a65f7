"""Schedule-Free: an average of the points in place of a rate that decays."""

from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from mithril_opt.core import slots as storage
from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, shown, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_zeros, safe_divide, safe_sqrt, widest_real
from mithril_opt.core.pytree import pytree, with_fields
from mithril_opt.core.schedule_free import Averaging, Weights, average, follow, is_narrow
from mithril_opt.core.state import OptState, check_state, exported
from mithril_opt.core.tree import leaves_with_paths, overlay, trained
from mithril_opt.core.typing import Array, DecayMask, PyTree


@exported
class ScheduleFreeSlots(NamedTuple):
    """The point z; second moment v (AdamW only); the average x, where the parameter has too few digits to tell it; float32."""

    z: Array
    nu: Array | None
    x: Array | None

    _exact = ("z", "x")  # their errors would add up


@exported
class ScheduleFreeShared(NamedTuple):
    """The weights of the points so far, and the β₁ that y was made with, None where every x is kept."""

    weights: Weights
    beta1: Array | None


class ScheduleFreeRule(LeafOptimizer):
    """What the Schedule-Free rules have in common: all but ĝ."""

    learning_rate: ScalarOrSchedule
    beta1: DecayRateOrSchedule
    r: ScalarOrSchedule
    weight_lr_power: ScalarOrSchedule
    keep_x: bool | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_x not in (None, True, False):
            raise TypeError(f"{type(self).__name__}: keep_x must be True, False or None, got {shown(self.keep_x)}")

    def for_leaf(self, path: str, param: Any) -> Self:
        keep_x = is_narrow(param) if self.keep_x is None else self.keep_x
        return with_fields(super().for_leaf(path, param), keep_x=keep_x)

    def init_leaf(self, param: Array) -> ScheduleFreeSlots:
        return ScheduleFreeSlots(z=storage.start_at(param), nu=None, x=storage.start_at(param) if self.keep_x else None)

    def init_shared(self, params: PyTree) -> ScheduleFreeShared:
        dtype = widest_real(params)
        beta1 = None if self.keep_x else jnp.asarray(self.beta1.value, dtype)
        return ScheduleFreeShared(Weights.of_nothing(dtype), beta1)

    def share(
        self, rules: list[Any], params: list[Array], grads: list[Array], slots: list[PyTree], shared: PyTree, t: Array
    ) -> tuple[ScheduleFreeShared, list[Averaging]]:
        c, weights = shared.weights.with_point(t, self.learning_rate, self.r, self.weight_lr_power)
        before, beta1 = shared.beta1, None if shared.beta1 is None else jnp.asarray(self.beta1.value, c.dtype)
        averaging = Averaging(c, 0.0 if before is None else (before - beta1) / before)
        return ScheduleFreeShared(weights, beta1), [averaging] * len(grads)

    def _follow(self, y: Array, g: Array, slots: ScheduleFreeSlots, averaging: Averaging) -> tuple[Array, ScheduleFreeSlots]:
        """The step of y when z follows ĝ, and the new slots."""
        step, z, x = follow(y, slots.z, slots.x, self.learning_rate * g, self.beta1, averaging)
        return step, slots._replace(z=z, x=x)

    def eval_params(self, params: PyTree, state: OptState) -> PyTree:
        """x, in the dtypes of `params`."""
        check_state(self, state)
        own, rule = trained(params), self.at(state.step, state.schedules)
        rows = storage.scatter([rule.for_leaf(path, leaf) for path, leaf in leaves_with_paths(own)], own, state.slots)
        ys, structure = jax.tree.flatten(own)
        xs = [average(y, row.z, row.x, state.shared.beta1) for y, row in zip(ys, rows, strict=True)]
        return overlay(params, structure.unflatten(xs), params)

    def owns_updates(self, changer: str) -> str:
        name = type(self).__name__
        return f"{name} tells x from y and z, which move by its very updates: write ScheduleFree({changer}(...))"

    def reads(self) -> str:
        return "the averages x"


@pytree
class ScheduleFreeAdamW(ScheduleFreeRule):
    """Schedule-Free AdamW (Defazio et al. 2024): no schedule that must know when training ends.

        v ← β₂ v + (1 − β₂) g²           v̂ = v / (1 − β₂ᵗ)
        ĝ = g / (√v̂ + ε) + λ y
        z ← z − η ĝ
        x ← (1 − c) x + c z              c = wₜ / (w₁ + … + wₜ),  wₜ = tʳ (largest η so far)^q
        y ← β₁ x + (1 − β₁) z

    There are three points. The parameters are y, where gradients are taken; z moves; and x, the average, is what to evaluate
    and to export: `optimizer.eval_params(params, state)`. Averages of batch normalization belong to y: run some batches with x
    before evaluating.

    A gradient above 1e18 leaves v infinite, and its element of z where it is from then on; x and y near it.

    The rate does not decay, but a warm-up helps. Its first value should not be 0, which would waste an update: a warm-up of W
    steps is `LinearWarmupScheduler(W - 1, rate / W, rate)`.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in (0, 1), how near to the average gradients are taken; 0.95 to 0.98 for long runs.
        beta2: β₂ in [0, 1), the decay rate of the second moment.
        epsilon: ε ≥ 0, outside the square root, after the bias correction.
        weight_decay: λ ≥ 0, at y; 0.0 switches it off.
        r: r ≥ 0, how much more later points weigh.
        weight_lr_power: q ≥ 0, how much less those of the warm-up weigh.
        keep_x: whether x is a slot. None: for 16-bit parameters, which have too few digits to tell it from y and z. True for
            those in `Round(..., remainder=0)`.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import ScheduleFreeAdamW
        >>> optimizer = ScheduleFreeAdamW(learning_rate=0.5)
        >>> params, state = jnp.array([1.0]), optimizer.init(jnp.array([1.0]))
        >>> for _ in range(2):
        ...     params, state = optimizer.update(params, jnp.array([1.0]), state)
        >>> params, optimizer.eval_params(params, state)
        (Array([0.225], dtype=float32), Array([0.25], dtype=float32))
    """

    learning_rate: ScalarOrSchedule = number(default=2.5e-3, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9, above=0)
    beta2: DecayRateOrSchedule = decay_rate(default=0.999)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    r: ScalarOrSchedule = number(default=0.0, minimum=0)
    weight_lr_power: ScalarOrSchedule = number(default=2.0, minimum=0)
    keep_x: bool | None = static(default=None)
    decay_mask: DecayMask | None = static(default=None)

    moments: ClassVar = ("nu",)
    bias_corrected: ClassVar = ("nu",)

    def init_leaf(self, param: Array) -> ScheduleFreeSlots:
        return super().init_leaf(param)._replace(nu=real_zeros(param))

    def update_leaf(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, param: Array, grad: Array, slots: Any, t: Array, averaging: Averaging
    ) -> tuple[Array, ScheduleFreeSlots]:
        v = ema(self.beta2, slots.nu, abs_sq(grad))
        g = safe_divide(grad, safe_sqrt(v / self.beta2.one_minus_power(t)) + self.epsilon)
        if self.weight_decay is not None:
            g = g + self.weight_decay * param
        return self._follow(param, g, slots._replace(nu=v), averaging)


@pytree
class ScheduleFreeSGD(ScheduleFreeRule):
    """Schedule-Free SGD (Defazio et al. 2024).

        ĝ = g + λ y
        z ← z − η ĝ
        x ← (1 − c) x + c z              c = wₜ / (w₁ + … + wₜ),  wₜ = tʳ (largest η so far)^q
        y ← β₁ x + (1 − β₁) z

    The parameters are y; `eval_params` are x. β₁ takes the place of momentum, and rates are larger than those of SGD with it.
    It squares no gradient, so that one above 1e18 is a step like any other. All else is as in `ScheduleFreeAdamW`.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in (0, 1), how near to the average gradients are taken.
        weight_decay: λ ≥ 0, at y; 0.0 switches it off.
        r: r ≥ 0, how much more later points weigh.
        weight_lr_power: q ≥ 0, how much less those of the warm-up weigh.
        keep_x: whether x is a slot. None: for 16-bit parameters.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import ScheduleFreeSGD
        >>> optimizer = ScheduleFreeSGD(learning_rate=0.5)
        >>> params, state = jnp.array([1.0]), optimizer.init(jnp.array([1.0]))
        >>> for _ in range(2):
        ...     params, state = optimizer.update(params, jnp.array([1.0]), state)
        >>> params, optimizer.eval_params(params, state)
        (Array([0.225], dtype=float32), Array([0.25], dtype=float32))
    """

    learning_rate: ScalarOrSchedule = number(default=1.0, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9, above=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    r: ScalarOrSchedule = number(default=0.0, minimum=0)
    weight_lr_power: ScalarOrSchedule = number(default=2.0, minimum=0)
    keep_x: bool | None = static(default=None)
    decay_mask: DecayMask | None = static(default=None)

    def update_leaf(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, param: Array, grad: Array, slots: Any, t: Array, averaging: Averaging
    ) -> tuple[Array, ScheduleFreeSlots]:
        g = grad if self.weight_decay is None else grad + self.weight_decay * param
        return self._follow(param, g, slots, averaging)
