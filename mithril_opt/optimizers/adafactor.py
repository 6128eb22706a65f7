"""Adafactor."""

import operator
from typing import Any, ClassVar, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from mithril_opt.core.fields import AxesOrFunction, DecayRateOrSchedule, ScalarOrSchedule, count, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_zeros, safe_divide, safe_sqrt, zeros
from mithril_opt.core.pytree import pytree, set_field, with_fields
from mithril_opt.core.reductions import axes_at, check_axes, unit_rms
from mithril_opt.core.slots import zeros_along
from mithril_opt.core.state import Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class AdafactorSlots(NamedTuple):
    """Row means R and column means C of the squared gradients, or their second moment v for a leaf that is not factored; first
    moment m of the updates (with beta1 only); float32."""

    row: Array | None
    col: Array | None
    nu: Array | None
    mu: Array | None


@pytree
class Adafactor(LeafOptimizer):
    """Adafactor (Shazeer & Stern 2018, Algorithms 4 and 5): a second moment in the memory of its rows and columns.

        G = |g|² + ε₁                            1 − β₂ = t⁻ᶜ
        R ← β₂ R + (1 − β₂) mean_b G             over the columns b
        C ← β₂ C + (1 − β₂) mean_a G             over the rows a
        u = g / √V,  V = R C / mean_a R          not factored: V ← β₂ V + (1 − β₂) G
        u ← u / max(1, RMS(u) / d)
        u ← max(ε₂, RMS(p)) u                    with scale_parameter
        m ← β₁ m + (1 − β₁) u                    with beta1, and then m in the place of u
        p ← p − ρ u − η λ p                      ρ = min(η, 1/√t) with relative_step, or else η

    A leaf is factored over its two largest axes if both have at least `min_dim_size_to_factor` elements; of equal axes the
    later ones are taken. For each index along the other axes there are rows and columns. R C is never formed, as it would
    underflow: V is right down to |g| ≈ √ε₁. Where |g| comes near 1e18 the squares overflow: a factored leaf becomes NaN, and an
    element of another leaf stays where it is.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), without bias correction; None or 0.0 switches it off, slot included.
        decay: c ≥ 0, how fast β₂ approaches 1.
        epsilon1: ε₁ ≥ 0, added to the squared gradients.
        epsilon2: ε₂ ≥ 0, the smallest scale of a parameter.
        update_clip: d > 0, the largest RMS of an update; None for no bound.
        scale_parameter: whether steps are relative to the RMS of the parameter.
        relative_step: whether the rate is at most 1/√t.
        weight_decay: λ ≥ 0, decoupled, at the rate η; 0.0 switches it off.
        min_dim_size_to_factor: the smallest axis that is factored, an integer ≥ 1.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.
        matrix_axes: the pair of axes (a, b) to factor in place of the two largest, () for none, or `(path, leaf) -> axes`. What
            has fewer than two axes is not factored.
        unit_axes: the axes that count the layers stacked in a leaf, an axis, a tuple, or `(path, leaf) -> axes`. Each layer has
            an RMS of its own, and these axes are not factored.

    Raises:
        ValueError: a number is out of its range, or a leaf has no such axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import Adafactor
        >>> optimizer, params = Adafactor(), {"w": jnp.ones((256, 128)), "b": jnp.ones(128)}
        >>> state = optimizer.init(params)
        >>> state.slots.row["w"].shape, state.slots.col["w"].shape, state.slots.nu["w"]
        ((128,), (256,), None)
        >>> params, state = optimizer.update(params, {"w": jnp.ones((256, 128)), "b": jnp.ones(128)}, state)
        >>> params["b"][:2]
        Array([0.99, 0.99], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=1e-2, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=None, off=True)
    decay: ScalarOrSchedule = number(default=0.8, minimum=0)
    epsilon1: ScalarOrSchedule = number(default=1e-30, minimum=0)
    epsilon2: ScalarOrSchedule = number(default=1e-3, minimum=0)
    update_clip: ScalarOrSchedule = number(default=1.0, above=0, optional=True)
    scale_parameter: bool = static(default=True)
    relative_step: bool = static(default=True)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    min_dim_size_to_factor: int = static(default=128)
    decay_mask: DecayMask | None = static(default=None)
    matrix_axes: AxesOrFunction = static(default=None)
    unit_axes: AxesOrFunction = static(default=None)

    bias_corrected: ClassVar = ("row", "col", "nu")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axes("Adafactor: matrix_axes", self.matrix_axes)
        least = count(self.min_dim_size_to_factor, "Adafactor: min_dim_size_to_factor")
        set_field(self, "min_dim_size_to_factor", least)

    @property
    def torch(self) -> Counterpart | None:
        slots = {"row": "row_var", "col": "col_var", "nu": "variance"}
        if self.beta1 is not None:  # PyTorch has no first moment
            return None
        second = operator.itemgetter(1)  # the first has no counterpart: it bounds what ours is added to
        fields = {"decay": ("beta2_decay", operator.neg), "epsilon2": ("eps", second), "update_clip": "d"}
        return Counterpart("Adafactor", slots, frozenset({"beta2_decay"}), fields=fields, reduced=self._reduced_axes)

    @property
    def optax(self) -> Counterpart | None:
        # optax keeps the rate in the first moment, which means something else, and always factors the two largest axes.
        other = self.beta1 is not None or self.matrix_axes is not None or self.unit_axes is not None
        return None if other else Counterpart("FactoredState", {"row": "v_row", "col": "v_col", "nu": "v"})

    def for_leaf(self, path: str, param: Any) -> Self:
        rule = super().for_leaf(path, param)
        if self.matrix_axes is None:
            return rule
        pair = axes_at("Adafactor.matrix_axes", self.matrix_axes, path, param) if np.ndim(param) > 1 else ()
        if pair and (len(pair) != 2 or set(pair) & set(rule.unit_axes or ())):
            raise ValueError(f"at {path!r}: Adafactor.matrix_axes must be two axes that count no layers, got {pair}")
        return with_fields(rule, matrix_axes=pair)

    def init_leaf(self, param: Array) -> AdafactorSlots:
        axes = self._factored_axes(param.shape)
        row, col = (None, None) if axes is None else (_zeros_without(param, axis) for axis in reversed(axes))
        nu = real_zeros(param) if axes is None else None
        return AdafactorSlots(row, col, nu, mu=None if self.beta1 is None else zeros(param))

    def update_leaf(self, param: Array, grad: Array, slots: AdafactorSlots, t: Array) -> tuple[Array, AdafactorSlots]:
        u, slots = self._divided_by_root(grad, slots, t)
        if self.update_clip is not None:
            u = u / jnp.maximum(1, unit_rms(u, self.unit_axes) / self.update_clip)
        if self.scale_parameter:
            u = jnp.maximum(self.epsilon2, unit_rms(param, self.unit_axes)) * u
        if slots.mu is not None:
            u = ema(self.beta1, slots.mu, u)
            slots = slots._replace(mu=u)
        step = (jnp.minimum(self.learning_rate, t**-0.5) if self.relative_step else self.learning_rate) * u
        if self.weight_decay is not None:
            step = step + self.learning_rate * self.weight_decay * param
        return step, slots

    def _divided_by_root(self, grad: Array, slots: AdafactorSlots, t: Array) -> tuple[Array, AdafactorSlots]:
        """g / √V, and the new second moments."""
        fresh = t**-self.decay  # 1 − β₂, which 1 − (1 − β₂) would not give back
        average = lambda old, new: (1 - fresh) * old + fresh * new  # noqa: E731
        squares, axes = abs_sq(grad) + self.epsilon1, self._factored_axes(grad.shape)
        if axes is None:
            v = average(slots.nu, squares)
            return safe_divide(grad, safe_sqrt(v)), slots._replace(nu=v)
        a, b = axes
        row, col = average(slots.row, jnp.mean(squares, b)), average(slots.col, jnp.mean(squares, a))
        root_r, root_c = jnp.expand_dims(safe_sqrt(row), b), jnp.expand_dims(safe_sqrt(col), a)
        root_mean = safe_sqrt(jnp.mean(jnp.expand_dims(row, b), a, keepdims=True))
        return safe_divide(grad, root_c) * safe_divide(root_mean, root_r), slots._replace(row=row, col=col)

    def _factored_axes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The axes (a, b) of rows and columns; None for a leaf that is not factored."""
        if callable(self.matrix_axes):  # of no leaf yet
            return None
        long = [axis for axis, size in enumerate(shape) if size >= self.min_dim_size_to_factor]
        free = [axis for axis in long if axis not in (self.unit_axes or ())]
        pair = sorted(free, key=shape.__getitem__)[-2:] if self.matrix_axes is None else self.matrix_axes
        return (pair[0], pair[1]) if len(pair) == 2 and set(pair) <= set(long) else None

    def _reduced_axes(self, path: str, leaf: Any) -> dict[str, int]:
        """The axis that each slot of a leaf lacks."""
        axes = self.for_leaf(path, leaf)._factored_axes(np.shape(leaf))
        return {} if axes is None else {"row": axes[1], "col": axes[0]}


def _zeros_without(param: Array, axis: int) -> Array:
    """An empty mean over `axis` of `param`."""
    return zeros_along(param, [kept for kept in range(param.ndim) if kept != axis])
