"""What PyTorch's optimizers keep, parameter by parameter, and whether their rules are ours."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.state import Counterpart
from mithril_opt.core.tree import leaves_with_paths, listed, trained
from mithril_opt.core.typing import PyTree
from mithril_opt.interop.torch_arrays import Names, misnamed, paths_of

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
    paths, own, moves = _in_order(names, rows), rules_of(optimizer, params), moving(optimizer, params)
    if wrong := misnamed(paths, [path for path in own if path in moves], own):
        raise ValueError(
            f"names must have the path of each parameter once, in the order of PyTorch's parameter groups: {wrong}"
        )
    if len(rows) != len(paths):
        raise ValueError(f"PyTorch's optimizer has {len(rows)} parameters, but names lists {len(paths)}: {listed(paths)}")
    kept = dict(zip(paths, rows, strict=True))
    for path, row in kept.items():
        if path in moves or row.entry:
            _check_rule(path, counterpart(own[path]), row.group)
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
