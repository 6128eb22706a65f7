"""What a training loop in PyTorch remembers beside its optimizer: a scheduler that follows a metric, and the loss scale."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.fields import shown
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.schedule import Schedule
from mithril_opt.core.typing import PyTree
from mithril_opt.mixed_precision.commit import TrainerState
from mithril_opt.mixed_precision.loss_scale import LossScaleState
from mithril_opt.mixed_precision.readings import check_made_by
from mithril_opt.mixed_precision.trainer import MixedPrecisionTrainer
from mithril_opt.schedulers.plateau import WORST, PlateauState, ReduceLROnPlateau

REMEMBERED = ("best", "num_bad_epochs", "cooldown_counter")
SCALED = ("scale", "_growth_tracker")
# Of which a reduced rate may be the result.
MOST_REDUCTIONS = 4096


def _is_memory(node: Any) -> bool:
    return isinstance(node, PlateauState)


def remembered(rule: Optimizer, state: Any, scheduler: Any, rate: float | None) -> dict[str, PyTree]:
    """What the schedules of `rule` remember: what PyTorch's `scheduler` does, and as many reductions as lead to `rate`."""
    name = type(rule).__name__
    if others := sorted(set(state.schedules) - {"learning_rate"}):
        raise ValueError(f"{name}: {others} follow a metric, but in PyTorch only a learning rate does; move with numbers there")
    schedule, memory = rule.schedules["learning_rate"], state.schedules["learning_rate"]
    _check_scheduler(name, _plateau_in(schedule), scheduler)
    if rate is None:
        raise ValueError(f"{name}: the reduced rate, 'lr' in the param_groups of PyTorch's optimizer, is missing")
    # Before the first metric its best is infinite, and ours is what init makes it.
    seen = {key: scheduler[key] for key in REMEMBERED if np.isfinite(float(scheduler[key]))}
    memory = _with(memory, **seen)
    return {"learning_rate": _with(memory, num_reductions=_reductions(schedule, memory, state.step, rate))}


def _check_scheduler(name: str, plateau: ReduceLROnPlateau, scheduler: Any) -> None:
    """Raise a ValueError unless `scheduler` is what PyTorch's of the rule `name` keeps that is `plateau` here."""
    if not isinstance(scheduler, Mapping) or not set(scheduler) >= set(REMEMBERED):
        found = sorted(map(str, scheduler)) if isinstance(scheduler, Mapping) else scheduler
        raise ValueError(
            f"{name}: its learning_rate follows a metric, so what PyTorch's ReduceLROnPlateau has seen is needed: "
            f"state_from_torch(..., scheduler=scheduler.state_dict()); got {found}"
        )
    if plateau.mode != (theirs := scheduler.get("mode", plateau.mode)):
        raise ValueError(f"PyTorch's scheduler has mode {theirs!r}; write ReduceLROnPlateau(..., mode={theirs!r})")


def _plateau_in(schedule: Schedule) -> ReduceLROnPlateau:
    """The one schedule in `schedule` that follows a metric."""
    is_plateau = lambda node: isinstance(node, ReduceLROnPlateau)  # noqa: E731
    found = [node for node in jax.tree.leaves(schedule, is_leaf=is_plateau) if is_plateau(node)]
    if len(found) != 1:
        raise ValueError(
            f"{shown(schedule)} follows a metric, but only one ReduceLROnPlateau can be moved; it has {len(found)}"
        )
    return found[0]


def _with(memory: PyTree, **values: Any) -> PyTree:
    """`memory` with `values` in the `PlateauState` in it."""

    def replaced(node: Any) -> Any:
        return node._replace(**{key: jnp.asarray(value, getattr(node, key).dtype) for key, value in values.items()})

    return jax.tree.map(lambda node: replaced(node) if _is_memory(node) else node, memory, is_leaf=_is_memory)


def _reductions(schedule: Schedule, memory: PyTree, step: Any, rate: float) -> int:
    """How often the rate was reduced until it was `rate`."""
    rate_after = jax.vmap(lambda reductions: schedule.read(_with(memory, num_reductions=reductions), step))
    rates = jax.jit(rate_after)(jnp.arange(MOST_REDUCTIONS))
    fits = np.isclose(rates, rate, rtol=1e-6, atol=0)
    if not fits.any():
        first = ", ".join(f"{float(value):.8g}" for value in rates[:3])
        raise ValueError(
            f"PyTorch's scheduler has reduced the rate to {rate:.8g}, but here it goes {first}, …: see to the first rate, "
            "factor and min_lr of ReduceLROnPlateau"
        )
    return int(fits.argmax())


def scheduler_to_torch(state: PyTree, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The `state_dict` of PyTorch's `ReduceLROnPlateau` with what ours has seen.

    The reduced rate itself is in the parameter groups, where `state_to_torch` puts it. Other schedulers, but for those made of
    several, need the count of updates alone: `{**scheduler.state_dict(), "last_epoch": int(state.step)}`.

    Args:
        state: the state of an optimizer or a trainer whose learning rates follow one metric.
        state_dict: the `state_dict()` of PyTorch's scheduler, fresh or not; its settings are kept.

    Returns:
        A dictionary for the scheduler's `load_state_dict`.

    Raises:
        ValueError: `state` remembers no metric, or its groups have seen different ones.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, ReduceLROnPlateau, scheduler_to_torch
        >>> optimizer = SGD(learning_rate=ReduceLROnPlateau(0.1))
        >>> state = optimizer.observe(optimizer.init(jnp.ones(2)), 0.5)
        >>> scheduler_to_torch(state, {"patience": 10, "best": float("inf")})
        {'patience': 10, 'best': 0.5, 'num_bad_epochs': 0, 'cooldown_counter': 0}
    """
    memories = [node for node in jax.tree.leaves(state, is_leaf=_is_memory) if _is_memory(node)]
    seen = {tuple(getattr(memory, name).item() for name in REMEMBERED) for memory in memories}
    if len(seen) != 1:
        raise ValueError(f"a ReduceLROnPlateau of PyTorch has seen one series of metrics, but this state {len(seen)}")
    best, bad, cooling = seen.pop()
    values = (best if abs(best) < WORST else float(np.copysign(np.inf, best)), bad, cooling)
    return {**state_dict, **dict(zip(REMEMBERED, values, strict=True))}


def loss_scale_from(trainer: MixedPrecisionTrainer, scaler: Any) -> LossScaleState:
    """The loss scale of PyTorch's `scaler`, after checking that the trainer moves it by the same rule."""
    fresh = trainer.scaling.init()
    if not trainer.policy.needs_loss_scaling:
        if scaler:
            raise ValueError(f"{trainer.policy!r} scales no loss; leave scaler out")
        return fresh
    if isinstance(scaler, Mapping) and not scaler:  # of one that was switched off: there was no scale
        return fresh
    if not isinstance(scaler, Mapping) or not set(scaler) >= set(SCALED):
        found = sorted(map(str, scaler)) if isinstance(scaler, Mapping) else scaler
        raise ValueError(
            "the trainer scales the loss, so PyTorch's scale is needed: state_from_torch(..., scaler=scaler.state_dict()), or "
            f"scaler={{}} for a loss scale that begins afresh; got {found}"
        )
    _check_scaling(trainer, scaler)
    scale, tracker = float(scaler["scale"]), int(scaler["_growth_tracker"])
    return fresh._replace(scale=jnp.asarray(scale, jnp.float32), good_steps=jnp.asarray(tracker, jnp.int32))


def _check_scaling(trainer: MixedPrecisionTrainer, scaler: Mapping[str, Any]) -> None:
    moves = ("growth_factor", "backoff_factor", "growth_interval") if trainer.dynamic_loss_scaling else ()
    for name in moves:
        if name in scaler and not np.isclose(float(getattr(trainer, name)), scaler[name], rtol=1e-6, atol=0):
            theirs, ours = scaler[name], getattr(trainer, name)
            raise ValueError(f"GradScaler has {name}={theirs}, the trainer {ours}: MixedPrecisionTrainer(..., {name}={theirs})")
    low, scale, high = (float(number) for number in (trainer.min_loss_scale, scaler["scale"], trainer.max_loss_scale))
    if not low <= scale <= high:
        bound = "min_loss_scale" if scale < low else "max_loss_scale"
        raise ValueError(
            f"GradScaler's scale is {scale:g}, but the trainer's is from {low:g} to {high:g}: "
            f"MixedPrecisionTrainer(..., {bound}={scale:g})"
        )


def scaler_to_torch(state: TrainerState, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The `state_dict` of PyTorch's `GradScaler` with the loss scale of a trainer.

    Args:
        state: the trainer's state.
        state_dict: the `state_dict()` of PyTorch's scaler, fresh or not; its settings are kept.

    Returns:
        A dictionary for the scaler's `load_state_dict`.

    Raises:
        ValueError: `state` is not that of a trainer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, MixedPrecisionTrainer, scaler_to_torch
        >>> state = MixedPrecisionTrainer(None, SGD(), loss_scale=1024.0).init(jnp.ones(2))
        >>> scaler_to_torch(state, {"scale": 65536.0, "growth_interval": 2000, "_growth_tracker": 7})
        {'scale': 1024.0, 'growth_interval': 2000, '_growth_tracker': 0}
    """
    check_made_by(state, TrainerState, "state", "init")
    loss_scale = state.loss_scale
    return {**state_dict, "scale": loss_scale.scale.item(), "_growth_tracker": loss_scale.good_steps.item()}
