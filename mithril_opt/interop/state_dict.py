"""A state as a flat dictionary of arrays with readable names, for any checkpoint format.

    step                     int32
    slots/mu/decoder/w       float32
    loss_scale/scale         float32
    format_version           int32

The names are the paths of the leaves, so they stay the same while the classes around them change.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.tree import describe_leaf, leaves_with_paths
from mithril_opt.core.typing import PyTree

VERSION_KEY = "format_version"
FORMAT_VERSION = 1

T = TypeVar("T")


def to_state_dict(state: PyTree) -> dict[str, Any]:
    """`state` as a flat dictionary.

    Args:
        state: the state of an optimizer or a trainer, or any tree of arrays, parameters say.

    Returns:
        The leaves by their paths (`slots/mu/decoder/w`), and `format_version`, an int32 scalar. Arrays are handed over as they
        are, sharded ones included; a PRNG key as its data, a Python number as a NumPy scalar array. A step that is donated
        `state` takes its arrays away: save what is returned before it, or keep `jax.tree.map(jnp.copy, ...)` of it.

    Raises:
        ValueError: two leaves have the same path, because a key contains a slash.
        TypeError: a leaf is no array: a function, say, or a string.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, to_state_dict
        >>> sorted(to_state_dict(SGD(momentum=0.9).init({"w": jnp.ones(2)})))
        ['format_version', 'slots/trace/w', 'step']
    """
    leaves = leaves_with_paths(state)
    counts = Counter([*(path for path, _ in leaves), VERSION_KEY])
    twice = sorted(path for path, count in counts.items() if count > 1)
    if twice:
        raise ValueError(f"several leaves have the same path: {', '.join(twice)}")
    return {**{path: _stored(path, leaf) for path, leaf in leaves}, VERSION_KEY: np.array(FORMAT_VERSION, np.int32)}


def from_state_dict(template: T, mapping: Mapping[str, Any], strict: bool = True) -> T:
    """The state whose leaves are in `mapping`.

    Nothing is put on a device before all entries are found to fit, and `template` is never changed. What is returned shares no
    memory with `mapping`.

    Args:
        template: a state of the wanted structure: what `init` returned, or `jax.eval_shape` of it. Leaves with a sharding
            determine where the restored arrays are put.
        mapping: what `to_state_dict` returned, with NumPy or JAX arrays as values.
        strict: whether every leaf must be there with the right shape and dtype, and nothing else. Otherwise what fits is taken
            and the rest of `template` kept, which must then hold arrays.

    Returns:
        A state of the structure, shapes and dtypes of `template`.

    Raises:
        ValueError: the entries do not fit; lists those that are missing, unexpected, or of another shape or dtype. Or the
            format is a later one than this version reads.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, from_state_dict, to_state_dict
        >>> optimizer, params = SGD(momentum=0.9), {"w": jnp.ones(2)}
        >>> saved = to_state_dict(optimizer.init(params))
        >>> from_state_dict(optimizer.init(params), saved).slots.trace
        {'w': Array([0., 0.], dtype=float32)}
    """
    _check_version(mapping)
    leaves = leaves_with_paths(template)
    expected = {path: _data(leaf) for path, leaf in leaves}
    fitting = {path for path, leaf in expected.items() if path in mapping and _spec(leaf) == _spec(mapping[path])}
    if strict:
        _check_complete(expected, mapping, fitting)
    _check_arrays({path: leaf for path, leaf in leaves if path not in fitting})
    values = [_restored(mapping[path] if path in fitting else _stored(path, leaf), leaf) for path, leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(template), values)


def placed(value: Any, leaf: Any) -> jax.Array:
    """A copy of `value`, in a buffer of its own, where `leaf` is, an array or a `jax.ShapeDtypeStruct`.

    What JAX has put on its default device is free to move; a copy that is bound to that device could not be used together with
    arrays on a mesh.
    """
    own = jnp.copy(value) if isinstance(value, jax.Array) else np.array(value)
    return jax.device_put(own, leaf.sharding if getattr(leaf, "committed", True) and hasattr(leaf, "sharding") else None)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(path: str, leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    if isinstance(leaf, bool | int | float | complex):
        return np.asarray(leaf, jnp.result_type(leaf))
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise TypeError(f"only arrays can be saved, but {path!r} is {describe_leaf(leaf)}")
    return leaf


def _data(leaf: Any) -> Any:
    """What is stored for `leaf`: shape and dtype are what counts."""
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf


def _spec(leaf: Any) -> tuple[Any, Any]:
    return np.shape(leaf), jnp.result_type(leaf) if hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex) else None


def _restored(value: Any, leaf: Any) -> jax.Array:
    if not _is_key(leaf):
        return placed(value, leaf)
    implementations: list[Any] = []
    jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), leaf)  # the leaf may be abstract
    return placed(jax.random.wrap_key_data(jnp.asarray(value), impl=implementations[0]), leaf)


def _check_version(mapping: Mapping[str, Any]) -> None:
    version = np.asarray(mapping.get(VERSION_KEY, FORMAT_VERSION))
    if version.shape or version.dtype.kind not in "iu":
        raise ValueError(f"{VERSION_KEY} must be an integer, got {mapping[VERSION_KEY]!r}")
    if not 1 <= version <= FORMAT_VERSION:
        raise ValueError(f"the state was saved in format {version}; this version of mithril_opt reads up to {FORMAT_VERSION}")


def _check_complete(expected: Mapping[str, Any], mapping: Mapping[str, Any], fitting: set[str]) -> None:
    problems = [f"missing: {path} {describe_leaf(leaf)}" for path, leaf in expected.items() if path not in mapping]
    problems += [f"unexpected: {path}" for path in mapping if path not in expected and path != VERSION_KEY]
    problems += [
        f"expected {describe_leaf(leaf)} but found {describe_leaf(mapping[path])}: {path}"
        for path, leaf in expected.items()
        if path in mapping and path not in fitting
    ]
    if problems:
        raise ValueError("the saved state does not fit:\n  " + "\n  ".join(problems))


def _check_arrays(kept: Mapping[str, Any]) -> None:
    """Raise a ValueError if what is to be kept of the template has no values."""
    empty = [f"{path} {describe_leaf(leaf)}" for path, leaf in kept.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
    if empty:
        raise ValueError(
            "the saved state lacks these entries, and the template has no values for them:\n  " + "\n  ".join(empty)
        )
