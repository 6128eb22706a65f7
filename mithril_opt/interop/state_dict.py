"""A state as a flat dictionary of arrays with readable names, for any checkpoint format.

    step                     int32
    slots/mu/decoder/w       float32
    loss_scale/scale         float32
    format_version           int32
    format_rules             uint8, text

The names are the paths of the leaves, so they stay the same while the classes around them change. What `format_version` and
`format_rules` are is in `state_format`. What is read is a stranger's: nothing is looked at but what is expected.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.fields import shown
from mithril_opt.core.tree import describe_leaf, leaves_with_paths, listed
from mithril_opt.core.typing import PyTree
from mithril_opt.interop.state_format import FORMAT_VERSION, RULES_KEY, VERSION_KEY, check_rules, checked_version, header

COUNTS = {"step", "micro_step", "verdict", "skipped", "attempts", "good_steps", "seen", "rows", "updates", "n_averaged"}

T = TypeVar("T")


def to_state_dict(state: PyTree) -> dict[str, Any]:
    """`state` as a flat dictionary.

    Args:
        state: the state of an optimizer or a trainer, or any tree of arrays, parameters say.

    Returns:
        The leaves by their paths (`slots/mu/decoder/w`); `format_version`, an int32 scalar; and `format_rules`, the classes of
        the states and slots with the fields that they have, as bytes. Arrays are handed over as they are, sharded ones
        included; a PRNG key as its data, a Python number as a NumPy scalar array. A step that is donated `state` takes its
        arrays away: save what is returned before it, or keep `jax.tree.map(jnp.copy, ...)` of it.

    Raises:
        ValueError: two leaves have the same path, or the path of one is the beginning of another's, which a file of folders
            could not hold, because a key contains a slash; or a path leads out of its folder, through "..".
        TypeError: a leaf is no array: a function, say, or a string.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, to_state_dict
        >>> sorted(to_state_dict(SGD(momentum=0.9).init({"w": jnp.ones(2)})))
        ['format_rules', 'format_version', 'slots/trace/w', 'step']
    """
    leaves = leaves_with_paths(state)
    _check_paths([*(path for path, _ in leaves), VERSION_KEY, RULES_KEY])
    return {**{path: _stored(path, leaf) for path, leaf in leaves}, **header(state)}


def from_state_dict(template: T, mapping: Mapping[str, Any], strict: bool = True) -> T:
    """The state whose leaves are in `mapping`.

    Nothing is put on a device before all entries are found to fit, and `template` is never changed. What is returned shares no
    memory with `mapping`. Of `mapping`, which may be a file that was opened with `numpy.load`, only the entries that are
    expected are read.

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
            state is another rule's, or of one with other switches; an entry cannot be read, as from a damaged file; a count is
            negative; the format is a later one than this version reads; or the arguments are swapped. Names the entry.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, from_state_dict, to_state_dict
        >>> optimizer, params = SGD(momentum=0.9), {"w": jnp.ones(2)}
        >>> saved = to_state_dict(optimizer.init(params))
        >>> from_state_dict(optimizer.init(params), saved).slots.trace
        {'w': Array([0., 0.], dtype=float32)}
    """
    _check_arguments(template, mapping)
    version = checked_version(_entry(mapping, VERSION_KEY)) if VERSION_KEY in mapping else FORMAT_VERSION
    leaves = leaves_with_paths(template)
    expected = {path: _data(leaf) for path, leaf in leaves}
    if strict and RULES_KEY in mapping:
        check_rules(template, _entry(mapping, RULES_KEY), version)
    found = {path: _as_saved(_entry(mapping, path), leaf) for path, leaf in expected.items() if path in mapping}
    fitting = {path: value for path, value in found.items() if _spec(expected[path]) == _spec(value)}
    if strict:
        _check_complete(expected, found, mapping)
    _check_counts(fitting)
    _check_arrays({path: leaf for path, leaf in leaves if path not in fitting})
    values = [_restored(fitting[path] if path in fitting else _stored(path, leaf), leaf) for path, leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(template), values)


def _check_paths(paths: list[str]) -> None:
    """Raise a ValueError if a store of folders could not hold `paths`, or would write them elsewhere."""
    counts = Counter(paths)
    if twice := sorted(path for path, count in counts.items() if count > 1):
        raise ValueError(f"several leaves have the same path: {listed(twice)}")
    if inside := sorted(path for path in counts if any(parent in counts for parent in _parents(path))):
        raise ValueError(f"the path of a leaf goes on where that of another ends: {listed(inside)}")
    if outside := sorted(path for path in counts if ".." in path.split("/")):
        raise ValueError(f"the path of a leaf leads out of its folder: {listed(outside)}")


def _parents(path: str) -> list[str]:
    """The paths that `path` goes through."""
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


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
    if isinstance(leaf, bool | int | float | complex):
        return (), jnp.result_type(leaf)
    # Not jnp.result_type of an array: it takes an int64 for an int32.
    return getattr(leaf, "shape", None), getattr(leaf, "dtype", None)


def _restored(value: Any, leaf: Any) -> jax.Array:
    if not _is_key(leaf):
        return placed(value, leaf)
    implementations: list[Any] = []
    jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), leaf)  # the leaf may be abstract
    return placed(jax.random.wrap_key_data(jnp.asarray(value), impl=implementations[0]), leaf)


def _entry(mapping: Mapping[str, Any], path: str) -> Any:
    """What `mapping` holds at `path`; a ValueError if a file has nothing readable there."""
    try:
        return mapping[path]
    except Exception as error:  # whatever a damaged file makes of the reader
        raise ValueError(f"{path!r} cannot be read: {shown(error)}") from error


def _as_saved(value: Any, leaf: Any) -> Any:
    """`value`, in the dtype of `leaf` if it is one that NumPy wrote as bytes because it does not know it (bfloat16, float8)."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "V" or value.dtype.names:
        return value
    dtype = np.dtype(_spec(leaf)[1])
    return value.view(dtype) if dtype.kind == "V" and dtype.itemsize == value.dtype.itemsize else value


def _check_arguments(template: Any, mapping: Any) -> None:
    if isinstance(template, Mapping) and VERSION_KEY in template:
        raise ValueError("from_state_dict takes (template, mapping), but its first argument is what to_state_dict returned")
    if not isinstance(mapping, Mapping):
        raise TypeError(f"the second argument of from_state_dict is what to_state_dict returned, got {type(mapping).__name__}")


def _check_counts(mapping: Mapping[str, Any]) -> None:
    """Raise a ValueError if a count of updates is negative."""
    for path, value in mapping.items():
        if path.rpartition("/")[2] in COUNTS and _spec(value) == ((), jnp.int32) and int(value) < 0:
            raise ValueError(f"{path} must not be negative, got {int(value)}")


def _check_complete(expected: Mapping[str, Any], found: Mapping[str, Any], given: Iterable[str]) -> None:
    known = {*expected, VERSION_KEY, RULES_KEY}
    problems = [f"missing: {path} {describe_leaf(leaf)}" for path, leaf in expected.items() if path not in found]
    problems += [f"unexpected: {_printable(path)}" for path in given if path not in known]
    problems += [
        f"expected {describe_leaf(leaf)} but found {describe_leaf(found[path])}: {path}"
        for path, leaf in expected.items()
        if path in found and _spec(leaf) != _spec(found[path])
    ]
    if problems:
        raise ValueError(f"the saved state does not fit:\n  {_lines(problems)}")


def _printable(path: Any) -> str:
    """A stranger's `path` on one line of a message."""
    return path if isinstance(path, str) and path.isprintable() and len(path) <= 200 else shown(path)


def _check_arrays(kept: Mapping[str, Any]) -> None:
    """Raise a ValueError if what is to be kept of the template has no values."""
    empty = [f"{path} {describe_leaf(leaf)}" for path, leaf in kept.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
    if empty:
        raise ValueError(f"the saved state lacks these entries, and the template has no values for them:\n  {_lines(empty)}")


def _lines(problems: list[str], most: int = 12) -> str:
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "\n  ".join([*problems[:most], *more])
