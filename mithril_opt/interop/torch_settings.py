"""Whether the settings of PyTorch's parameter groups are those of our next update."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.state import Counterpart
from mithril_opt.core.tree import leaves_with_paths, listed, trained
from mithril_opt.core.typing import PyTree
from mithril_opt.interop.torch_groups import Kept, counterpart, moving


class Next(NamedTuple):
    """What the next update does to a parameter.

    Attributes:
        path: of the parameter.
        rule: what moves it, with the numbers of that update.
        rate: the learning rate of its rule; None if that keeps it to itself.
        factor: what the wrappers around the rule multiply the rate by.
        decay: its weight decay; None if the rule does not tell.
    """

    path: str
    rule: Optimizer
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
        rule=rule,
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
    for own in updates:
        group = kept[own.path].group
        for name in names:
            if name in own.settings and name in group and not close(own.settings[name], group, name):
                raise ValueError(_difference(own, [name], _shown(own.settings[name]), kept, updates, count))


def check_fields(kept: Mapping[str, Kept], updates: list[Next], count: int) -> None:
    """The same of the other numbers and switches of the rules."""
    for own in updates:
        names, wanted = _differing(own.rule, kept[own.path].group)
        if wanted:
            ours = ", ".join(f"{field} = {_shown(getattr(own.rule, field))}" for field in wanted)
            write = f": write {_call(own.rule, wanted, kept[own.path].group)}"
            raise ValueError(_difference(own, names, ours, kept, updates, count, write))


def _call(rule: Optimizer, wanted: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    """The rule with the numbers `wanted`; the momentum, or β₁, as a schedule where PyTorch's scheduler has left its ends."""
    numbers, after = {field: _shown(value) for field, value in wanted.items()}, ""
    ends = [_shown(group[name]) for name in ("base_momentum", "max_momentum") if name in group]
    cycled = [field for field, source in counterpart(rule).fields.items() if field == "beta1" or source == "momentum"]
    for field in set(cycled) & set(wanted) if len(ends) == 2 else ():
        numbers[field] = f"schedule.momentum_schedule({', '.join(ends)})"
        after = ", where schedule is its learning_rate, the OneCycleLR or CyclicLR that moves both"
    return f"{type(rule).__name__}({', '.join(f'{field}={value}' for field, value in numbers.items())}){after}"


def _differing(rule: Optimizer, group: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """PyTorch's names of what `group` says otherwise than `rule`, and by our fields what they would have to be."""
    names, wanted = [], {}
    for field, source in counterpart(rule).fields.items():
        name, as_ours = (source, lambda value: value) if isinstance(source, str) else source
        if name in group and not _same(getattr(rule, field), as_ours(group[name])):
            names.append(name)
            wanted[field] = as_ours(group[name])
    return [*dict.fromkeys(names)], wanted


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, str | tuple):
        return ours == theirs
    off = 0.0  # which is None here
    return math.isclose(float(off if ours is None else ours), float(theirs), rel_tol=1e-6)


def _difference(
    own: Next, names: list[str], ours: str, kept: Mapping[str, Kept], updates: list[Next], count: int, write: str = ""
) -> str:
    """What is said of a parameter for which PyTorch's settings `names` are not `ours`."""
    row = kept[own.path]
    theirs = ", ".join(f"{name} = {_shown(row.group[name])}" for name in names)
    of_rates = (
        ", the state is saved after scheduler.step(), the schedule is that of PyTorch, its length included, and a step that "
        "GradScaler skips moves PyTorch's scheduler alone: write lambda step: schedule(step + skipped)"
    )
    return (
        f"after {count} updates {own.path!r} has {theirs} in PyTorch, but {ours} in the next update here{write}. names follow "
        f"the order of the parameter groups{of_rates if 'lr' in names else ''}. {_several(names, kept, updates)}"
        f"If it shall change from here on{_way_on(names, row, counterpart(own.rule))}"
    )


def _several(names: list[str], kept: Mapping[str, Kept], updates: list[Next]) -> str:
    """What to do where PyTorch's groups differ, and all is alike here."""
    values = {str([_shown(kept[own.path].group.get(name)) for name in names]) for own in updates}
    ours = {(id(own.rule), *[own.settings.get(name) for name in names]) for own in updates}
    if len(ours) > 1 or len(values) == 1:
        return ""
    return f"PyTorch's groups differ in {listed(names)}: give each a group of a MultiOptimizer. "


def _way_on(names: list[str], row: Kept, theirs: Counterpart) -> str:
    if theirs.settings & set(names):  # without which nobody would know whose the group is
        return ", move with PyTorch's and use the state with another optimizer"
    deleted = ", ".join(f'group["{name}"]' for name in names)
    return f": for group in {_groups(row)}: del {deleted}"


def _groups(row: Kept) -> str:
    """Where the parameter groups of an optimizer are in what was given."""
    return f'state_dict{"" if row.label is None else f"[{row.label!r}]"}["param_groups"]'


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shown, value))}{',' if len(value) == 1 else ''})"
    return repr(value) if isinstance(value, str | bool | None) else f"{float(value):.8g}"


def check_rates(kept: Mapping[str, Kept], updates: list[Next], count: int) -> None:
    """Raise a ValueError where PyTorch lowers a rate by itself, which a schedule does here."""
    for own in updates:
        row = kept[own.path]
        if (decay := row.group.get("lr_decay")) and "lr" in row.group:
            rate, decay = _shown(row.group["lr"]), _shown(decay)
            raise ValueError(
                f"{own.path!r} has lr_decay = {decay} in PyTorch: write {type(own.rule).__name__}(learning_rate=lambda step: "
                f"{rate} / (1 + {decay} * step)), and that this is the rate: for group in {_groups(row)}: "
                f'group["lr"] /= 1 + {count} * group["lr_decay"]; group["lr_decay"] = 0'
            )


def check_minimised(kept: Mapping[str, Kept], updates: list[Next]) -> None:
    """Raise a ValueError where PyTorch goes up the gradient."""
    for row in (kept[own.path] for own in updates):
        if row.group.get("maximize"):
            raise ValueError(
                "a parameter group has maximize = True, but here a loss is always minimised: negate it, which leaves the state "
                f'as it is, and say so: for group in {_groups(row)}: group["maximize"] = False'
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
