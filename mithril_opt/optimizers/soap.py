"""SOAP: Adam in the eigenbasis of Shampoo."""

from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.eigenbases import (
    Bases,
    eigenvectors,
    improved,
    outer_products,
    reorder,
    rotate,
    rotate_back,
    together,
    turns,
)
from mithril_opt.core.fields import (
    AxesOrFunction,
    DecayRateOrSchedule,
    ScalarOrSchedule,
    count,
    decay_rate,
    number,
    static,
    steps,
)
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.matrices import whole
from mithril_opt.core.numerics import ema, safe_divide, safe_sqrt, saturating_increment, zeros
from mithril_opt.core.pytree import pytree, set_field
from mithril_opt.core.slots import zeros_along
from mithril_opt.core.state import exported
from mithril_opt.core.tree import placed_like
from mithril_opt.core.typing import Array, DecayMask, PyTree


@exported
class SOAPSlots(NamedTuple):
    """First moment m and second moment v in the eigenbasis; for each axis, or None, the average L of the outer products of the
    gradient, and the basis Q, which is zeros before it is known; float32. The number of gradients seen, int32."""

    mu: Array
    nu: Array
    outer: Bases | None
    basis: Bases | None
    seen: Array

    _exact = ("outer", "basis")  # small eigenvalues drown in the errors of large ones


@pytree
class SOAP(LeafOptimizer):
    """SOAP (Vyas et al. 2024): Adam in the eigenbasis of Shampoo, with the order of the authors' code.

        G′ = g, rotated by Qᵢᵀ along every axis i
        m ← β₁ m + (1 − β₁) G′           v ← β₂ v + (1 − β₂) G′²
        u = m / (√v + ε), rotated back, times √(1 − β₂ᵏ) / (1 − β₁ᵏ)        k = t − 1
        p ← p − η (u + λ p)
        Lᵢ ← β Lᵢ + (1 − β) Gᵢ           Gᵢ = g with itself, summed over all axes but i

    The first gradient moves nothing: the eigenvectors of its Lᵢ are the first Qᵢ. Every f updates Qᵢ becomes the Q of the QR
    decomposition of Lᵢ Qᵢ, a step of power iteration on the columns in the order of their eigenvalues; v is put into that
    order, and m is rotated along. The state has the Qᵢ of the last update; the next one begins with renewing them where that is
    due. Derivatives stop at Qᵢ.

    Axes longer than `max_precond_dim` are not rotated, and what has fewer than two axes is Adam's with this place of ε. The
    state is 8 bytes for a parameter, and 8 more for every element of the Lᵢ: 24 in all for a square matrix. Where Lᵢ is
    singular (an axis longer than all others together), the eigenvectors to 0 are arbitrary, and machines differ.

    A gradient above about 1e18 leaves v infinite, and the directions of the eigenbasis in which it is so where they are from
    then on; Lᵢ takes no part of a gradient whose Gᵢ is not finite.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in [0, 1), the decay rate of the second moment.
        every: f ≥ 1, the number of updates between those after which the bases are renewed.
        max_precond_dim: the longest axis that is rotated, ≥ 1.
        epsilon: ε ≥ 0, outside the square root, before the bias correction.
        weight_decay: λ ≥ 0, decoupled; 0.0 switches it off.
        shampoo_beta: β in [0, 1); None for β₂.
        unit_axes: the axes that count the layers stacked in a leaf, an axis, a tuple, or `(path, leaf) -> axes`: each layer has
            its own bases. None for a leaf that is one layer.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range, or a parameter is complex; names its path.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SOAP
        >>> optimizer, params = SOAP(learning_rate=0.1, weight_decay=0.0), jnp.eye(2)
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     params, state = optimizer.update(params, jnp.diag(jnp.array([1.0, -2.0])), state)
        >>> (100 * jnp.diag(params)).round()
        Array([ 90., 110.], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=3e-3, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.95)
    beta2: DecayRateOrSchedule = decay_rate(default=0.95)
    every: int | Array = steps(default=10)
    max_precond_dim: int = static(default=10000)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.01, minimum=0, off=True, masked=True)
    shampoo_beta: DecayRateOrSchedule = decay_rate(default=None, optional=True)
    unit_axes: AxesOrFunction = static(default=None)
    decay_mask: DecayMask | None = static(default=None)

    resizable: ClassVar = False  # rows of v are no rows of the leaf, but of its eigenbasis

    def __post_init__(self) -> None:
        super().__post_init__()
        set_field(self, "max_precond_dim", count(self.max_precond_dim, "SOAP: max_precond_dim"))

    def for_leaf(self, path: str, param: Any) -> Self:
        if jnp.issubdtype(jnp.result_type(param), jnp.complexfloating):
            raise ValueError(f"at {path!r}: SOAP takes no complex parameters, got {jnp.result_type(param)}")
        return super().for_leaf(path, param)

    def init_leaf(self, param: Array) -> SOAPSlots:
        units, own = self._axes(param.ndim)
        rotated = [len(own) > 1 and 0 < param.shape[axis] <= self.max_precond_dim for axis in own]
        sizes = [param.shape[axis] if yes else None for axis, yes in zip(own, rotated, strict=True)]
        square = lambda size: None if size is None else zeros_along(param, units, size, size)  # noqa: E731
        outer, basis = (tuple(map(square, sizes)) if any(rotated) else None for _ in range(2))
        return SOAPSlots(zeros(param), zeros(param), outer, basis, seen=jnp.zeros((), jnp.int32))

    def share(
        self, rules: list[Any], params: list[Array], grads: list[Array], slots: list[PyTree], shared: PyTree, t: Array
    ) -> tuple[PyTree, list[PyTree]]:
        """The moments and the bases of every leaf, renewed where that is due."""
        given = [(own.mu, own.nu, own.basis or ()) for own in slots]
        chosen = [i for i, own in enumerate(slots) if own.basis is not None]
        if chosen:
            renewed = self._renewed([rules[i] for i in chosen], [slots[i] for i in chosen])
            for i, own in zip(chosen, renewed, strict=True):
                given[i] = own
        return shared, given

    def _renewed(self, rules: list[Self], slots: list[SOAPSlots]) -> list[tuple[Array, Array, Bases]]:
        """The moments and the bases of leaves that have some."""
        outers, bases = jax.lax.stop_gradient(([own.outer for own in slots], [own.basis for own in slots]))
        structure, ls = jax.tree.structure(bases), jax.tree.leaves(outers)
        k = [own.seen for own in slots for _ in jax.tree.leaves(own.basis)]

        def found(qs: list[Array]) -> list[Array]:
            (vectors,) = together(eigenvectors, ls)
            return [jnp.where(own == 1, new, q) for own, new, q in zip(k, vectors, qs, strict=True)]

        def renewed(moments: list[Any], qs: list[Array]) -> tuple[list[Any], list[Array]]:
            new, orders = together(improved, ls, qs)
            columns = (structure.unflatten(column) for column in (new, qs, orders))
            rows = zip(rules, slots, moments, *columns, strict=True)
            moments = [rule._turned(self._due(own.seen), *mine, *row) for rule, own, mine, *row in rows]
            return moments, [jnp.where(self._due(own), q, old) for own, q, old in zip(k, new, qs, strict=True)]

        qs = jax.lax.cond(jnp.any(jnp.stack(k) == 1), found, lambda qs: qs, jax.tree.leaves(bases))
        moments = [(own.mu, own.nu) for own in slots]
        moments, qs = jax.lax.cond(jnp.any(self._due(jnp.stack(k))), renewed, lambda *same: same, moments, qs)
        return [(m, v, basis) for (m, v), basis in zip(moments, structure.unflatten(qs), strict=True)]

    def _due(self, k: Array) -> Array:
        """Whether the bases have been in use for f updates when k gradients have been seen."""
        return (k > 1) & ((k - 1) % self.every == 0)

    def _turned(self, due: Array, m: Array, v: Array, new: Bases, old: Bases, orders: Bases) -> tuple[Array, Array]:
        """The moments in new bases."""
        count = len(self._axes(m.ndim)[0])
        new_m = self._in_place(rotate(self._layers(m), turns(new, old), count), m)
        new_v = self._in_place(reorder(self._layers(v), orders, count), v)
        return jnp.where(due, new_m, m), jnp.where(due, new_v, v)

    def update_leaf(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, param: Array, grad: Array, slots: SOAPSlots, t: Array, given: tuple[Array, Array, Bases]
    ) -> tuple[Array, SOAPSlots]:
        (m, v, qs), layers, count = given, self._layers(grad), len(self._axes(grad.ndim)[0])
        first, k = slots.seen == 0, jnp.maximum(slots.seen, 1).astype(t.dtype)
        g = self._in_place(rotate(layers, qs, count), param)
        m = jnp.where(first, m, ema(self.beta1, m, g))
        v = jnp.where(first, v, ema(self.beta2, v, g * g))
        correction = jnp.sqrt(self.beta2.one_minus_power(k)) / self.beta1.one_minus_power(k)
        u = correction * safe_divide(m, safe_sqrt(v) + self.epsilon)
        direction = self._in_place(rotate_back(self._layers(u), qs, count), param)
        if self.weight_decay is not None:
            direction = direction + self.weight_decay * param
        outer = slots.outer
        if outer is not None:
            beta = self.beta2 if self.shampoo_beta is None else self.shampoo_beta
            averages = zip(outer, outer_products(layers, qs, count), strict=True)
            outer = tuple(None if x is None or y is None else _if_finite(ema(beta, x, y), x) for x, y in averages)
        step = jnp.where(first, 0, self.learning_rate * direction)
        return step, SOAPSlots(m, v, outer, None if outer is None else qs, saturating_increment(slots.seen))

    def _axes(self, rank: int) -> tuple[list[int], list[int]]:
        """The axes that count layers, and those of a layer."""
        units = self.unit_axes if isinstance(self.unit_axes, tuple) else ()  # otherwise the rule is of no leaf yet
        return list(units), [axis for axis in range(rank) if axis not in units]

    def _layers(self, x: Array) -> Array:
        """`x` with the axes that count layers in front."""
        units, own = self._axes(x.ndim)
        return whole(x.transpose(*units, *own), len(units))

    def _in_place(self, layers: Array, like: Array) -> Array:
        """The inverse of `_layers`, sharded like the parameter `like`."""
        units, own = self._axes(layers.ndim)
        return placed_like(layers.transpose(np.argsort([*units, *own])), like)


def _if_finite(new: Array, old: Array) -> Array:
    """Each of the matrices `new` that is finite, and the `old` one where it is not: one bad L would spoil Q for ever."""
    return jnp.where(jnp.all(jnp.isfinite(new), axis=(-2, -1), keepdims=True), new, old)
