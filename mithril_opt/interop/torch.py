"""PyTorch's optimizer states, both ways, so that a run can be moved whole: groups, wrappers, schedules and the loss scale."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.state import check_state
from mithril_opt.core.tree import leaves_with_paths, trained
from mithril_opt.core.typing import PyTree
from mithril_opt.interop.torch_arrays import Axes, Names, axes_of, back, paths_of
from mithril_opt.interop.torch_groups import Kept, kept_by_path, moving, separate
from mithril_opt.interop.torch_memory import loss_scale_from, remembered
from mithril_opt.interop.torch_settings import (
    check_fields,
    check_minimised,
    check_rates,
    check_settings,
    next_update,
    with_rates,
)
from mithril_opt.interop.torch_slots import common_step, entries_of, filled
from mithril_opt.mixed_precision.commit import TrainerState
from mithril_opt.mixed_precision.readings import check_made_by
from mithril_opt.mixed_precision.trainer import MixedPrecisionTrainer
from mithril_opt.wrappers.accumulate import Accumulate
from mithril_opt.wrappers.base import Wrapper
from mithril_opt.wrappers.multi import MultiOptimizer


def state_from_torch(
    optimizer: Optimizer | MixedPrecisionTrainer,
    params: PyTree,
    state_dict: Mapping[str, Any],
    names: Names,
    transpose: Axes = (),
    step: int | None = None,
    scheduler: Mapping[str, Any] | None = None,
    scaler: Mapping[str, Any] | None = None,
) -> Any:
    """The state of `optimizer` with the numbers of a PyTorch `optimizer.state_dict()` of the same rules.

    The groups of a `MultiOptimizer` need not be PyTorch's parameter groups, but each parameter must be trained as it was there:
    by the same rule, with the numbers and switches that its group in PyTorch has and, in the next update, its rate ("lr" after
    `scheduler.step()`). What a group lacks is not compared: for another rate from here on, delete "lr" from the groups, or move
    with PyTorch's rate and use the state with another optimizer. A schedule is a function of the count of updates, with which
    `scheduler.last_epoch` must agree; that of a scheduler that makes a step per epoch is a `PerEpoch`. Where `GradScaler`
    skipped updates, their scheduler has gone on: write `lambda step: schedule(step + skipped)`.

    What a wrapper keeps of its own, an average or the window of `Accumulate`, begins afresh.

    Args:
        optimizer: one whose rules PyTorch has too: `SGD`, `AdamW`, `NAdam`, … `Adafactor` without `beta1`, with
            `min_dim_size_to_factor=1` and as `matrix_axes` those that are PyTorch's last two: (-1, -2) for a transposed matrix.
            A `MultiOptimizer` of them, also with `Frozen` groups, a wrapper around them, or a `MixedPrecisionTrainer`.
        params: the parameters in JAX.
        state_dict: what PyTorch's optimizer returned, with tensors or NumPy arrays. If there were several, a dictionary of them
            under any names.
        names: the paths of the parameters in `params` ("decoder/w"), in PyTorch's order: group by group, and optimizer by
            optimizer. Or a dictionary from PyTorch's names to paths, as for `params_from_torch`, in that order, which does not
            matter if PyTorch's optimizer was given `named_parameters()`.
        transpose: the paths whose matrices PyTorch keeps transposed, as (out, in): the weights of `torch.nn.Linear`, usually.
            Or a dictionary from paths to what `numpy.transpose` needs to turn PyTorch's array into ours: (2, 3, 1, 0) for the
            weight of a `torch.nn.Conv2d`.
        step: number of updates made, for a state that does not say it (that of `torch.optim.SGD`).
        scheduler: the `state_dict()` of PyTorch's `ReduceLROnPlateau`, where a learning rate follows a metric; the reduced rate
            is that of the parameter groups. With several optimizers, a dictionary of them under the same names.
        scaler: the `state_dict()` of PyTorch's `GradScaler`, for a trainer that scales the loss. {}, that of one with
            `enabled=False`, begins with the trainer's own scale.

    Returns:
        A state as `optimizer.init(params)` makes it, in dtypes and placement too.

    Raises:
        ValueError: an optimizer without a counterpart, a state of another one, names that are not the paths of `params`, a slot
            that is missing, unknown or of another shape, complex moments, parameters that made different numbers of updates,
            a number that is not known; a rate, another number or a switch that is not PyTorch's; `maximize` or `lr_decay`; or a
            scheduler or scaler that is missing, has no use, or cannot have come to where it is by the settings here.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from mithril_opt import Adam, state_from_torch
        >>> saved = {"state": {0: {"step": 3.0, "exp_avg": np.ones(2), "exp_avg_sq": np.ones(2)}}, "param_groups": []}
        >>> state = state_from_torch(Adam(), {"w": jnp.zeros(2)}, saved, names=["w"])
        >>> state.step, state.slots.mu
        (Array(3, dtype=int32), {'w': Array([1., 1.], dtype=float32)})
    """
    if isinstance(optimizer, MixedPrecisionTrainer):
        loss_scale = loss_scale_from(optimizer, scaler)
        inner = state_from_torch(optimizer.optimizer, params, state_dict, names, transpose, step, scheduler)
        return TrainerState(inner, loss_scale)
    if scaler is not None:
        raise ValueError("a loss scale belongs to a trainer; give MixedPrecisionTrainer(None, optimizer) in place of optimizer")
    axes, kept = axes_of(transpose, paths_of(names)), kept_by_path(optimizer, params, state_dict, names)
    count = common_step(optimizer, params, kept, step)
    template = optimizer.unpack(optimizer.init(params))
    state = _rebuilt(optimizer, params, template, count, functools.partial(filled, kept, axes))
    follows = any(part.schedules for _, _, part in _each_rule(optimizer, params, state))
    if scheduler is not None and not follows:
        raise ValueError("no learning rate here follows a metric, they are functions of the updates made: leave scheduler out")
    if follows:
        state = _with_memories(optimizer, params, state, count, kept, scheduler)
    updates = next_update(optimizer, params, state)
    check_minimised(kept, updates)
    check_rates(kept, updates, count)
    check_settings(kept, updates, ("lr", "weight_decay"), count)
    check_fields(kept, updates, count)
    return optimizer.pack(state)


def state_to_torch(
    optimizer: Optimizer | MixedPrecisionTrainer,
    params: PyTree,
    state: Any,
    state_dict: Mapping[str, Any],
    names: Names,
    transpose: Axes = (),
) -> dict[str, Any]:
    """A PyTorch `state_dict` with the numbers of `state`: the inverse of `state_from_torch`.

    What else PyTorch's loop needs is made by `scheduler_to_torch` and `scaler_to_torch`. What a wrapper keeps of its own stays
    behind.

    Args:
        optimizer: the optimizer or trainer that `state` belongs to.
        params: the parameters in JAX.
        state: its state.
        state_dict: the `state_dict()` of PyTorch's optimizer, fresh or not; its `param_groups` are kept, but for "lr", which
            becomes the rate of the next update. If there are several, a dictionary of them.
        names: the paths of the parameters in PyTorch's order, or a dictionary, as for `state_from_torch`.
        transpose: as for `state_from_torch`, which it undoes.

    Returns:
        A dictionary for `load_state_dict`, whose arrays are NumPy's: turn them into tensors with `torch.from_numpy`. The count
        of updates is in it, but for `torch.optim.SGD`, which has none.

    Raises:
        ValueError: as `state_from_torch` does; or `Accumulate` is in mid-window, or the parameters of one of PyTorch's groups
            have different rates.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AdaGrad, state_to_torch
        >>> optimizer, params = AdaGrad(), {"w": jnp.ones(2)}
        >>> _, state = optimizer.update(params, params, optimizer.init(params))
        >>> state_to_torch(optimizer, params, state, {"state": {}, "param_groups": []}, names=["w"])["state"]
        {0: {'sum': array([1., 1.], dtype=float32), 'step': array(1., dtype=float32)}}
    """
    if isinstance(optimizer, MixedPrecisionTrainer):
        check_made_by(state, TrainerState, "state", "init")
        return state_to_torch(optimizer.optimizer, params, state.optimizer, state_dict, names, transpose)
    axes, kept = back(axes_of(transpose, paths_of(names))), kept_by_path(optimizer, params, state_dict, names)
    check_state(optimizer, state)
    state, entries = optimizer.unpack(state), {}
    for rule, own, part in _each_rule(optimizer, params, state):
        entries |= entries_of(rule, own, part, axes) if moving(rule, own) else {}
    updates, count = next_update(optimizer, params, state), int(optimizer.clock(state))
    check_rates(kept, updates, count)
    check_settings(kept, updates, ("weight_decay",), count)

    def moved(label: Any, one: Mapping[str, Any]) -> dict[str, Any]:
        state = {row.key: entries[path] for path, row in kept.items() if row.label == label and entries.get(path)}
        return {"state": state, "param_groups": with_rates(one["param_groups"], kept, updates)}

    given = {label: moved(label, one) for label, one in separate(state_dict).items()}
    return given[None] if set(given) == {None} else given


def _rebuilt(optimizer: Optimizer, params: PyTree, state: Any, step: int, change: Callable[..., Any]) -> Any:
    """`state` after `step` updates, with `change(rule, params, state)` in place of the state of each rule."""
    if isinstance(optimizer, MultiOptimizer):
        parts = [_rebuilt(own, mine, part, step, change) for own, mine, part in optimizer.parts(params, state)]
        state = optimizer.with_parts(state, parts)
    elif isinstance(optimizer, Wrapper):
        state = optimizer.with_inner(state, _rebuilt(optimizer.optimizer, params, optimizer.inner(state), step, change))
    else:
        state = change(optimizer, params, state)
    return optimizer.with_step(state, jnp.asarray(step, jnp.int32))


def _each_rule(optimizer: Optimizer, params: PyTree, state: Any) -> Iterator[tuple[Optimizer, PyTree, Any]]:
    """Every rule with its parameters and its state."""
    if isinstance(optimizer, MultiOptimizer):
        for own, mine, part in optimizer.parts(params, state):
            yield from _each_rule(own, mine, part)
    elif isinstance(optimizer, Wrapper):
        if isinstance(optimizer, Accumulate) and int(state.micro_step):
            raise ValueError(
                f"Accumulate is in mid-window, and its {int(state.micro_step)} gradients would be lost: take the state after "
                "an update that closes a window"
            )
        yield from _each_rule(optimizer.optimizer, params, optimizer.inner(state))
    else:
        yield optimizer, params, state


def _with_memories(
    optimizer: Optimizer, params: PyTree, state: Any, step: int, kept: Mapping[str, Kept], scheduler: Any
) -> Any:
    """`state` with what PyTorch's schedulers have seen."""
    factors = {own.path: own.factor for own in next_update(optimizer, params, state)}

    def change(rule: Optimizer, own: PyTree, part: Any) -> Any:
        if not part.schedules:
            return part
        factor, path = max((factors[path], path) for path, _ in leaves_with_paths(trained(own)) if path in factors)
        label, group = kept[path].label, kept[path].group
        seen = scheduler if label is None or not isinstance(scheduler, Mapping) else scheduler.get(label)
        rate = float(group["lr"]) / factor if factor and "lr" in group else None
        return part._replace(schedules=remembered(rule, part, seen, rate))

    return _rebuilt(optimizer, params, state, step, change)
