"""Schedule-Free around any rule without momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number
from mithril_opt.core.numerics import widest_real
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.schedule_free import Averaging, Weights, average, follow, is_narrow
from mithril_opt.core.slots import check_tree, fresh, start_at
from mithril_opt.core.state import exported
from mithril_opt.core.tree import map_leaves, overlay, placed_like, trained, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.core.updates import plain
from mithril_opt.wrappers.base import StatefulWrapper, check_no_window, fresh_beside


@exported
class ScheduleFreeState(NamedTuple):
    """What the next update needs.

    Attributes:
        optimizer: the state of the inner optimizer, whose parameters are z.
        z: the points that it moves, float32 or wider, a tree shaped like the parameters; None where nothing trains.
        x: their averages for parameters of 16 bits; None for the others, which tell them.
        weights: those of the points so far, a few scalars.
        beta1: the β₁ that the parameters were made with.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, ScheduleFree
        >>> state = ScheduleFree(SGD()).init({"w": jnp.ones(2)})
        >>> state.z, state.x
        ({'w': Array([1., 1.], dtype=float32)}, {'w': None})
    """

    optimizer: Any
    z: PyTree
    x: PyTree
    weights: Weights
    beta1: Array


@pytree
class ScheduleFree(StatefulWrapper):
    """Schedule-Free around another optimizer (Defazio et al. 2024), in the place of its momentum.

        z ← z + u                        u from the optimizer, given z and the gradient at y
        x ← (1 − c) x + c z              c = wₜ / (w₁ + … + wₜ),  wₜ = (largest η so far)^q
        y ← β₁ x + (1 − β₁) z

    The parameters are y, where gradients are taken; `eval_params` are x, the ones to evaluate and to export. Inside goes a rule
    without momentum, such as `Adam(beta1=0.0)`, with a constant rate or a warm-up; its weight decay acts at z.
    `ScheduleFreeAdamW` and `ScheduleFreeSGD` are the same in one piece, with a decay at y.

    Args:
        optimizer: the inner optimizer.
        beta1: β₁ in (0, 1), how near to the average gradients are taken.
        weight_lr_power: q ≥ 0, how much less the points of the warm-up weigh; 0.0 lets all weigh alike.

    Raises:
        ValueError: a number is out of its range, or `optimizer` accumulates or has several rates.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, ScheduleFree
        >>> optimizer = ScheduleFree(SGD(learning_rate=0.5))
        >>> params, state = jnp.array([1.0]), optimizer.init(jnp.array([1.0]))
        >>> for _ in range(2):
        ...     params, state = optimizer.update(params, jnp.array([1.0]), state)
        >>> params, optimizer.eval_params(params, state)
        (Array([0.225], dtype=float32), Array([0.25], dtype=float32))
    """

    optimizer: Optimizer
    beta1: DecayRateOrSchedule = decay_rate(default=0.9, above=0)
    weight_lr_power: ScalarOrSchedule = number(default=2.0, minimum=0, off=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_no_window(self)
        if self.optimizer.owns_addition:
            raise ValueError("ScheduleFree: z has 32 bits or more, which Round leaves alone: write Round(ScheduleFree(...))")

    @property
    def state_type(self) -> type:
        return ScheduleFreeState

    def init(self, params: PyTree) -> ScheduleFreeState:
        dtype, z = widest_real(trained(params)), fresh_beside(self, params, start_at)
        x = map_leaves(lambda z, leaf: fresh(start_at, leaf) if is_narrow(leaf) else None, params, z, params)
        weights = Weights.of_nothing(dtype, alike=self.weight_lr_power is None)
        state = ScheduleFreeState(self.optimizer.init(params), z, x, weights, jnp.ones((), dtype))
        return state._replace(beta1=jnp.array(self.numbers(state).beta1.value, dtype))

    def compute_updates(
        self, params: PyTree, grads: PyTree, state: ScheduleFreeState, **extra_args: Any
    ) -> tuple[PyTree, ScheduleFreeState]:
        check_tree(params, state.z, "point z")
        own = self.numbers(state)
        averaging, state = own._averaging(params, state)
        updates, new = super().compute_updates(overlay(params, state.z, params), grads, state, **extra_args)
        structure = jax.tree.structure(params)
        columns = [structure.flatten_up_to(tree) for tree in (params, state.z, state.x, plain(updates))]
        rows = [own._followed(averaging, y, z, x, update) for y, z, x, update in zip(*columns, strict=True)]
        updates, z, x = (structure.unflatten([row[i] for row in rows]) for i in range(3))
        return updates, new._replace(z=z, x=x)

    def _averaging(self, params: PyTree, state: ScheduleFreeState) -> tuple[Averaging, ScheduleFreeState]:
        """The weight of the next point, and the state with it among the weights."""
        dtype, q = state.beta1.dtype, self.weight_lr_power
        rate = None if q is None else self._rate(params, state)
        with jax.numpy_dtype_promotion("standard"):
            c, weights = state.weights.with_point(jnp.zeros((), dtype), rate, 0.0, q)
        beta1 = jnp.asarray(self.beta1.value, dtype)
        return Averaging(c, (state.beta1 - beta1) / state.beta1), state._replace(weights=weights, beta1=beta1)

    def _rate(self, params: PyTree, state: ScheduleFreeState) -> Array:
        """The one learning rate of what moves."""
        names = sorted({name for name, rule in filter(None, self.rules(params)) if rule.window_length is not None})
        rates, otherwise = self.learning_rates(state), "or give weight_lr_power=0.0"
        if len(names) > 1:
            raise ValueError(f"ScheduleFree: the optimizer has several rates, {names}: wrap those of its groups, {otherwise}")
        if names and (names[0] or "learning_rate") not in rates:
            raise ValueError(f"ScheduleFree: the optimizer keeps its rate to itself: wrap another, {otherwise}")
        return rates[names[0] or "learning_rate"] if names else jnp.float32(0)

    def _followed(self, averaging: Averaging, y: Any, z: Any, x: Any, update: Any) -> tuple[Any, Any, Any]:
        """The update of y, and the new z and x of one leaf."""
        if update is None or z is None:
            return update, z, x
        with jax.numpy_dtype_promotion("standard"):
            step, new_z, new_x = follow(widen(y), z, x, -update, self.beta1, averaging)
        kept = [None if new is None else placed_like(new.astype(z.dtype), z) for new in (-step, new_z, new_x)]
        return kept[0], kept[1], kept[2]

    def eval_params(self, params: PyTree, state: ScheduleFreeState) -> PyTree:
        """x, in the dtypes of `params`."""
        inner, own = self.inner(state), trained(params)
        check_tree(own, state.z, "point z")
        structure = jax.tree.structure(own)
        columns = [structure.flatten_up_to(tree) for tree in (own, state.z, state.x)]
        xs = [None if z is None else average(y, z, x, state.beta1) for y, z, x in zip(*columns, strict=True)]
        return overlay(params, structure.unflatten(xs), self.optimizer.eval_params(params, inner))

    def owns_updates(self, changer: str) -> str:
        return f"ScheduleFree tells x from y and z, which move by its very updates: write ScheduleFree({changer}(...))"

    def says(self) -> str:
        return "gradients taken between z, which follows the updates, and its average x"

    def reads(self) -> str:
        return "the averages x"
