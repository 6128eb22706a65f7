"""What PyTorch's optimizers keep, parameter by parameter, and whether their settings are ours."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.state import Counterpart
from mithril_opt.core.tree import leaves_with_paths, listed, trained
from mithril_opt.core.typing import PyTree
from mithril_opt.interop.torch_arrays import Names, paths_of

PARTS = {"state", "param_groups"}


class Kept(NamedTuple):
    """What PyTorch has of a parameter.

    Attributes:
        label: which of several optimizers has it; None of a single one.
        key: what the `state_dict` of that calls it.
        name: what the model calls it; None unless the optimizer was given `named_parameters()`.
        entry: its state; empty before its first update.
        group: its parameter group; empty where the `state_dict` has none.
    """

    label: Any
    key: Any
    name: str | None
    entry: Mapping[str, Any]
    group: Mapping[str, Any]


def rules_of(optimizer: Optimizer, params: PyTree) -> dict[str, Optimizer]:
    """By path, the rule of each parameter that trains."""
    params = trained(params)
    columns = zip(leaves_with_paths(params), optimizer.rules(params), strict=True)
    return {path: rule[1] for (path, _), rule in columns if rule is not None}


def moving(optimizer: Optimizer, params: PyTree) -> set[str]:
    """The paths of the parameters that `optimizer` moves: all that train but the frozen ones."""
    own = trained(params)
    return {path for path, _ in leaves_with_paths(optimizer.drop_frozen(own, own))}


def counterpart(rule: Optimizer) -> Counterpart:
    """What PyTorch calls `rule`; a ValueError if it does not have it."""
    if rule.torch is None:
        raise ValueError(f"{type(rule).__name__} has no counterpart in PyTorch with the same state; Adam has, for one")
    return rule.torch


def separate(state_dict: Mapping[str, Any]) -> dict[Any, Mapping[str, Any]]:
    """The `state_dict` of each of PyTorch's optimizers by its label, None for that of a single one."""
    parts = {None: state_dict}
    if isinstance(state_dict, Mapping) and state_dict and not PARTS & set(state_dict):
        parts = dict(state_dict)
    for one in parts.values():
        if not isinstance(one, Mapping) or not set(one) >= PARTS:
            given = state_dict if isinstance(state_dict, Mapping) else [type(state_dict).__name__]
            raise ValueError(
                f"state_dict must be that of an optimizer, with 'state' and 'param_groups'; got {sorted(map(str, given))}"
            )
    return parts


def kept_by_path(optimizer: Optimizer, params: PyTree, state_dict: Mapping[str, Any], names: Names) -> dict[str, Kept]:
    """What PyTorch has of each parameter, after checking that `names` may be right and that its rules are ours."""
    rows = [row for label, one in separate(state_dict).items() for row in _rows(label, one, names)]
    paths, own = _in_order(names, rows), [path for path, _ in leaves_with_paths(trained(params))]
    if len(set(paths)) < len(paths) or not moving(optimizer, params) <= set(paths) <= set(own):
        raise ValueError(f"names must list the paths of the parameters in PyTorch's order, {listed(own)}; got {listed(paths)}")
    if len(rows) != len(paths):
        raise ValueError(f"PyTorch's optimizer has {len(rows)} parameters, but names lists {len(paths)}: {listed(paths)}")
    kept = dict(zip(paths, rows, strict=True))
    rules, moves = rules_of(optimizer, params), moving(optimizer, params)
    for path, row in kept.items():
        if path in moves or row.entry:
            _check_rule(path, counterpart(rules[path]), row.group)
    return kept


def _rows(label: Any, state_dict: Mapping[str, Any], names: Names) -> list[Kept]:
    """What PyTorch has of each parameter of an optimizer, in the order of its groups."""
    groups: list[Any] = state_dict["param_groups"] or [{}]
    return [
        Kept(label, key, name, _without_nones(state_dict["state"].get(key, {})), group)
        for group in groups
        for key, name in zip(
            group.get("params", range(len(names))), group.get("param_names", itertools.repeat(None)), strict=False
        )
    ]


def _without_nones(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}


def _in_order(names: Names, rows: list[Kept]) -> list[str]:
    """The paths `names` in the order of `rows`: by what the model calls them, if that is known."""
    theirs = [row.name for row in rows if row.name is not None]
    if not isinstance(names, Mapping) or len(theirs) < len(rows):
        return paths_of(names)
    if missing := [name for name in theirs if name not in names]:
        raise ValueError(f"names has no path for {listed(missing)} of PyTorch's optimizer; it has {listed(names)}")
    return [names[name] for name in theirs]


def _check_rule(path: str, theirs: Counterpart, group: Mapping[str, Any]) -> None:
    if not group:
        return
    of_rule = f"this is no state of torch.optim.{theirs.name}"
    order = f"; by names it is that of {path!r}, and names must follow the order of the parameter groups"
    if not theirs.settings <= set(group) or theirs.foreign & set(group):
        raise ValueError(f"{of_rule}, whose groups have {sorted(theirs.settings)}; these have {sorted(group)}{order}")
    if others := {name: group[name] for name, value in theirs.values.items() if group.get(name, value) != value}:
        raise ValueError(f"{of_rule}: a parameter group has {others}{order}")


class Next(NamedTuple):
    """What the next update does to a parameter.

    Attributes:
        path: of the parameter.
        rate: the learning rate of its rule; None if that keeps it to itself.
        factor: what the wrappers around the rule multiply the rate by.
        decay: its weight decay; None if the rule does not tell.
    """

    path: str
    rate: float | None
    factor: float
    decay: float | None

    @property
    def settings(self) -> dict[str, float]:
        """By PyTorch's names, as far as they are known."""
        known = {"lr": None if self.rate is None else self.rate * self.factor, "weight_decay": self.decay}
        return {name: value for name, value in known.items() if value is not None}


def next_update(optimizer: Optimizer, params: PyTree, state: Any) -> list[Next]:
    """What the next update does to each parameter that it moves."""
    resolved, moves, params = optimizer.resolve(state), moving(optimizer, params), trained(params)
    columns = zip(leaves_with_paths(params), resolved.rules(params), resolved.around(params), strict=True)
    return [_next(path, leaf, rule[1], around) for (path, leaf), rule, around in columns if rule and path in moves]


def _next(path: str, leaf: Any, rule: Optimizer, around: tuple[Any, ...]) -> Next:
    decays = rule.decays(path, leaf)
    return Next(
        path=path,
        rate=None if rule.rate is None else float(rule.rate),
        factor=math.prod(float(factor) for _, factor in around if factor is not None),
        decay=None if decays is None else float(sum(decays)),
    )


def check_settings(kept: Mapping[str, Kept], updates: list[Next], names: tuple[str, ...], count: int) -> None:
    """Raise a ValueError where a parameter group of PyTorch says of `names` something else than the next update does.

    Args:
        kept: what PyTorch has, by path.
        updates: what the next update does to each parameter.
        names: "lr", "weight_decay" or both.
        count: how many updates were made.
    """
    for path, own in ((update.path, update.settings) for update in updates):
        group = kept[path].group
        for name in names:
            if name in own and name in group and not close(own[name], group, name):
                raise ValueError(_other_setting(path, name, float(group[name]), own[name], count))


def _other_setting(path: str, name: str, theirs: float, ours: float, count: int) -> str:
    skips = "a step that GradScaler skips moves PyTorch's scheduler alone: write lambda step: schedule(step + skipped)"
    return (
        f"after {count} updates {path!r} has {name} = {theirs:.8g} in PyTorch, but {ours:.8g} in the next update here. names "
        f"follow the order of the parameter groups{f', and {skips}' if name == 'lr' else ''}. If it shall change from here on: "
        f'for group in state_dict["param_groups"]: del group["{name}"]'
    )


def close(ours: float, group: Mapping[str, Any], name: str) -> bool:
    """Whether `ours` is what a parameter group has, but for a millionth of it, or of the base rate near the end of a
    schedule."""
    base = float(group.get("initial_lr", 0)) if name == "lr" else 0.0
    return math.isclose(ours, float(group[name]), rel_tol=1e-6, abs_tol=1e-6 * base)


def with_rates(groups: list[Any], kept: Mapping[str, Kept], updates: list[Next]) -> list[dict[str, Any]]:
    """The parameter groups with the rates of the next update where they differ; a ValueError if a group has several."""
    known = {own.path: own.settings["lr"] for own in updates if "lr" in own.settings}

    def moved(group: Mapping[str, Any]) -> dict[str, Any]:
        rates = {path: rate for path, rate in known.items() if kept[path].group is group}
        if "lr" not in group or not rates:
            return dict(group)
        low, high = (choose(rates, key=rates.__getitem__) for choose in (min, max))
        if not math.isclose(rates[low], rates[high], rel_tol=1e-6):
            raise ValueError(
                f"{low!r} and {high!r} are in one parameter group of PyTorch, but their rates are {rates[low]:.8g} and "
                f"{rates[high]:.8g}; names must follow the order of the parameter groups"
            )
        return {**group, **({} if close(rates[low], group, "lr") else {"lr": rates[low]})}

    return [moved(group) for group in groups]
