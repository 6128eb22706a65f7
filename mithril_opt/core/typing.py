"""The types that signatures speak of."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Scalar: TypeAlias = float | jax.Array
# Which leaves decay: `(path, leaf) -> bool`, the path as "decoder/0/w".
DecayMask: TypeAlias = Callable[[str, Any], bool]
# Axes of an array that somebody names.
Axes: TypeAlias = int | tuple[int, ...] | None
