"""Frozen dataclasses that are pytrees: what optimizers and schedules are made of.

A field is one of two things. A *leaf* is a number, an array, a schedule or another optimizer: it passes through `jax.jit` as
an argument, so that changing it compiles nothing. A *static* field is a switch, a function or a pattern: it is part of the
structure, so that changing it compiles anew.

`jax.tree_util.register_dataclass` is not used because it rebuilds a value through `__init__`. Rebuilding must not check
ranges: the gradient with respect to an optimizer is an optimizer of gradients, and those may well be negative.
"""

import dataclasses
import functools
import inspect
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from mithril_opt.core.fields import OF_A_SWEEP, Number, decay_rate, is_static, number, rule_of, same_as, shown, static, steps
from mithril_opt.core.tree import trains

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static, number, decay_rate, steps, same_as))
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
    leaves = [field.name for field in fields if not is_static(field)]
    statics = [field.name for field in fields if is_static(field)]
    made._numbers = tuple(field.name for field in fields if rule_of(field))  # pyright: ignore[reportAttributeAccessIssue]

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


def check_decorated(cls: type) -> None:
    """Raise a TypeError unless `cls` is abstract or is itself a dataclass, and not only its base."""
    if not (inspect.isabstract(cls) or "__dataclass_fields__" in vars(cls)):
        raise TypeError(f"{cls.__name__} must be decorated with @pytree: its fields are not known otherwise")


def set_field(self: Any, name: str, value: Any) -> None:
    """Set a field of a frozen dataclass while it is being constructed."""
    object.__setattr__(self, name, value)


def with_fields(self: T, **values: Any) -> T:
    """A copy of `self` with some fields replaced; unlike `dataclasses.replace` it checks nothing.

    Inside a rule, where schedules are numbers and what is switched off is None, that is what is needed.

    Args:
        self: an optimizer or a schedule.
        values: fields by name; a decay rate as a `DecayRate`.

    Example:
        >>> from mithril_opt import SGD, with_fields
        >>> with_fields(SGD(learning_rate=0.5), learning_rate=0.25).learning_rate
        0.25
    """
    copy = object.__new__(type(self))
    vars(copy).update(vars(self) | values)
    return copy


def check_numbers(self: Any, *, schedules: bool = True) -> None:
    """Check the numbers and the switches among the fields of `self`, and store them as their rules say. With
    `schedules=False` a number cannot be a schedule."""
    for field in dataclasses.fields(self):
        where, value, rule = f"{type(self).__name__}: {field.name}", getattr(self, field.name), rule_of(field)
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise TypeError(f"{where} must be True or False, got {shown(value)}")
        if rule is not None:
            scheduled = schedules and isinstance(rule, Number) and not rule.integer
            set_field(self, field.name, rule.check(value, where, scheduled))


def numbers_are_sound(self: Any) -> Any:
    """Whether the numbers among the fields of `self`, whose schedules are resolved, are finite; of a field that may be infinite
    or says nothing about its numbers, whether they are not NaN. Boolean scalar."""
    verdicts = [jnp.bool(True)]
    for field in dataclasses.fields(self):
        rule = rule_of(field)
        is_sound = jnp.isfinite if isinstance(rule, Number) and not rule.infinite else lambda number: ~jnp.isnan(number)
        verdicts += [jnp.all(is_sound(number)) for number in jax.tree.leaves(getattr(self, field.name)) if trains(number)]
    return functools.reduce(jnp.logical_and, verdicts)


def check_scalars(self: Any) -> None:
    """Raise a ValueError if a number among the fields of `self`, whose schedules are resolved, is an array of some shape."""
    for name in self._numbers:
        if shape := max(map(np.shape, jax.tree.leaves(getattr(self, name))), default=()):
            raise ValueError(f"{type(self).__name__}: {name} must be a scalar, got shape {shape}; {OF_A_SWEEP}")
