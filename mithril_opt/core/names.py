"""Which names of a package are for its users."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any


def public(namespace: Mapping[str, Any]) -> list[str]:
    """The names in the `globals()` of a package that are neither modules nor private: what a package imports into its
    `__init__`, it offers."""
    return sorted(name for name, value in namespace.items() if not (name.startswith("_") or isinstance(value, ModuleType)))
