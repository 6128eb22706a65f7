"""What a saved state says of itself: the version of its format, and whose state it is.

    format_version           int32
    format_rules             uint8, text: optimizer: EMAState(optimizer, average); optimizer/optimizer/slots: AdamSlots(mu, nu)

Two rules may have slots of the same names and shapes, so their classes are in the file; and with each the fields that it has,
since a switch (AMSGrad, say) is a field that is there or not. Version 1 said nothing of the rules, version 2 the classes of the
slots alone.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np

from mithril_opt.core.fields import shown
from mithril_opt.core.state import OptState, is_state
from mithril_opt.core.tree import describe_leaf, leaves_with_paths
from mithril_opt.core.typing import PyTree

VERSION_KEY, RULES_KEY = "format_version", "format_rules"
FORMAT_VERSION = 3


def header(state: PyTree) -> dict[str, Any]:
    """The entries about `state` as a whole."""
    text = "; ".join(_classes("", state))
    return {VERSION_KEY: np.array(FORMAT_VERSION, np.int32), RULES_KEY: np.frombuffer(text.encode(), np.uint8)}


def checked_version(value: Any) -> int:
    """`value` as the version of a format that this library reads; a ValueError if it is none."""
    version = np.asarray(value) if isinstance(value, int) or hasattr(value, "dtype") else None
    if version is None or version.shape or version.dtype.kind not in "iu":
        raise ValueError(f"{VERSION_KEY} must be an integer, got {shown(value)}")
    if not 1 <= version <= FORMAT_VERSION:
        raise ValueError(f"the state was saved in format {version}; this version of mithril_opt reads up to {FORMAT_VERSION}")
    return int(version)


def check_rules(template: PyTree, value: Any, version: int) -> None:
    """Raise a ValueError unless `value`, the text of a file of this `version`, is that of a state like `template`."""
    saved, own = _read(value), [*_classes("", template)]
    if version == 2:
        # Of the slots alone, in this order.
        names = iter(_names(own))
        saved = saved if not all(name in names for name in _names(saved)) else own
    found, expected = next((pair for pair in zip_longest(saved, own) if pair[0] != pair[1]), (None, None))
    if found != expected:
        raise ValueError(
            "the saved state is another rule's, or one with other switches: "
            f"it has {shown(found or 'nothing more')}, expected {shown(expected or 'nothing more')}"
        )


def _read(value: Any) -> list[str]:
    if getattr(value, "dtype", None) != np.uint8 or value.ndim != 1:
        raise ValueError(f"{RULES_KEY} must be text as uint8, got {describe_leaf(value)}")
    text = bytes(np.asarray(value)).decode(errors="replace")
    return text.split("; ") if text else []


def _names(classes: list[str]) -> list[str]:
    """The names of the classes, without their paths and fields."""
    return [text.partition(": ")[2].partition("(")[0] for text in classes]


def _classes(path: str, node: PyTree) -> Iterator[str]:
    """The classes of the states and of the slots in `node`, each with its path and with the fields that it has."""
    if isinstance(node, OptState):
        yield from _slot_classes(f"{path}/slots", node.slots)
    elif is_state(node):
        yield _described(path, node)
        yield from _classes(f"{path}/optimizer", node.optimizer)
    else:
        inside = leaves_with_paths(node, is_leaf=is_state)
        for own, state in inside:
            yield from _classes(f"{path}/{own}", state) if is_state(state) else ()


def _slot_classes(path: str, slots: PyTree) -> Iterator[str]:
    if isinstance(slots, dict):
        for name, own in sorted(slots.items()):
            yield from _slot_classes(f"{path}/{name}", own)
    elif is_state(slots):
        yield from _classes(path, slots)
    elif hasattr(slots, "_fields"):
        yield _described(path, slots)


def _described(path: str, node: Any) -> str:
    fields = [name for name, value in zip(node._fields, node, strict=True) if value is not None]
    return f"{path.strip('/')}: {type(node).__name__}({', '.join(fields)})"
