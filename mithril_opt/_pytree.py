"""Frozen dataclasses that are pytrees: what optimizers and schedules are made of.

A field is one of two things. A *leaf* is a number, an array, a schedule or another optimizer: it passes through `jax.jit` as
an argument, so that changing it compiles nothing. A *static* field is a switch, a function or a pattern: it is part of the
structure, so that changing it compiles anew.

`jax.tree_util.register_dataclass` is not used because it rebuilds a value through `__init__`. Rebuilding must not check
ranges: the gradient with respect to an optimizer is an optimizer of gradients, and those may well be negative.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np
from jax.tree_util import GetAttrKey

T = TypeVar("T")


def static(*, default: Any = dataclasses.MISSING) -> Any:
    """A field that is part of the structure: a switch, a function, a pattern. Another value of it compiles anew.

    Args:
        default: what the field holds if nothing is given; must be hashable, as every value of the field.

    Example:
        >>> import jax
        >>> from mithril_opt import pytree, static
        >>> @pytree
        ... class Power:
        ...     base: float
        ...     exponent: int = static(default=2)
        >>> jax.tree.leaves(Power(1.5))
        [1.5]
    """
    return dataclasses.field(default=default, metadata={"static": True})


def number(
    *,
    default: Any = dataclasses.MISSING,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    off: bool = False,
    optional: bool = False,
) -> Any:
    """A field that holds a real number, with the range that a Python number must lie in.

    With `off=True` a Python zero means that the feature is switched off; it is stored as `None`, which is structure and
    survives `jax.jit`. With `optional=True`, `None` means that the number is not given.
    """
    lowest = f"[{minimum:g}" if minimum >= above else f"({above:g}"
    highest = f"{maximum:g}]" if maximum < below else f"{below:g})"
    interval = f"{lowest}, {highest}".replace("[-inf", "(-inf")
    metadata = dict(
        expected=f"a number in {interval}" if interval != "(-inf, inf)" else "a finite number",
        allows=lambda x: minimum <= x <= maximum and above < x < below and math.isfinite(x),
        decay_rate=below == 1,
        convert=float,
        off=off,
        optional=optional,
    )
    return dataclasses.field(default=default, metadata=metadata)


def steps(*, default: Any = dataclasses.MISSING, minimum: int = 1, optional: bool = False, increasing: bool = False) -> Any:
    """A field that counts steps: an integer of at least `minimum`; with `increasing=True` a sequence of such integers, each
    at least as large as the one before, stored as a tuple."""
    metadata = dict(
        expected=f"an integer of at least {minimum}",
        allows=lambda x: minimum <= x < 2**31 and x == int(x),
        convert=int,
        off=False,
        optional=optional,
        increasing=increasing,
    )
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static, number, steps))
def pytree(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a pytree whose children are its non-static fields.

    Args:
        cls: a class with annotated fields, as for `dataclasses.dataclass`.

    Example:
        >>> import jax
        >>> from mithril_opt import pytree, static
        >>> @pytree
        ... class Line:
        ...     slope: float
        ...     name: str = static(default="line")
        >>> jax.tree.map(lambda slope: 2 * slope, Line(1.5))
        Line(slope=3.0, name='line')
    """
    made = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(made)  # pyright: ignore[reportArgumentType]
    leaves = [field.name for field in fields if not field.metadata.get("static")]
    statics = [field.name for field in fields if field.metadata.get("static")]

    def flatten(self: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(self, name) for name in leaves], tuple(getattr(self, name) for name in statics)

    def flatten_with_keys(self: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children, structure = flatten(self)
        return [(GetAttrKey(name), child) for name, child in zip(leaves, children, strict=True)], structure

    def unflatten(structure: tuple[Any, ...], children: Any) -> Any:
        self = object.__new__(made)
        for name, value in (*zip(leaves, children, strict=True), *zip(statics, structure, strict=True)):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made


def set_field(self: Any, name: str, value: Any) -> None:
    """Set a field of a frozen dataclass while it is being constructed."""
    object.__setattr__(self, name, value)


def with_fields(self: T, **values: Any) -> T:
    """A copy of `self` with some fields replaced; unlike `dataclasses.replace` it checks nothing."""
    copy = object.__new__(type(self))
    for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
        object.__setattr__(copy, field.name, values.get(field.name, getattr(self, field.name)))
    return copy


def check_numbers(self: Any, *, schedules: bool = True) -> None:
    """Check the Python numbers and the switches among the fields of `self`; store ints as floats where a real number is meant,
    zeros as None where they mean off. With `schedules=False` a number cannot be a schedule."""
    for field in dataclasses.fields(self):
        where = f"{type(self).__name__}: {field.name}"
        if isinstance(field.default, bool) and not isinstance(getattr(self, field.name), bool):
            raise TypeError(f"{where} must be True or False, got {getattr(self, field.name)!r}")
        if "allows" in field.metadata:
            check = _checked_sequence if field.metadata.get("increasing") else _checked
            rule = {**field.metadata, "schedules": schedules and field.metadata["convert"] is float}
            set_field(self, field.name, check(getattr(self, field.name), where, rule))


def _checked(value: Any, where: str, rule: Mapping[str, Any]) -> Any:
    if value is None and (rule["off"] or rule["optional"]):
        return None
    if (rule["schedules"] and callable(value)) or (hasattr(value, "dtype") and not isinstance(value, np.number)):
        return value  # a schedule; or an array, which may be traced and whose value is not looked at
    expected = f"{rule['expected']} or a schedule" if rule["schedules"] else rule["expected"]
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{where} must be {expected}, got {value!r} of type {type(value).__name__}")
    if not rule["allows"](value):
        raise ValueError(f"{where} must be {expected}, got {value!r}")
    return None if rule["off"] and value == 0 else rule["convert"](value)


def _checked_sequence(values: Any, where: str, rule: Mapping[str, Any]) -> tuple[Any, ...]:
    """`values` as a tuple of checked integers that do not decrease; traced ones are not compared."""
    if not (isinstance(values, Sequence) or np.ndim(values) == 1) or isinstance(values, str):
        raise TypeError(f"{where} must be a sequence of integers, got {values!r} of type {type(values).__name__}")
    checked = tuple(_checked(value, f"{where}[{i}]", rule) for i, value in enumerate(values))
    known = [value for value in checked if isinstance(value, int)]
    if sorted(known) != known:
        raise ValueError(f"{where} must be increasing, got {list(checked)!r}")
    return checked
