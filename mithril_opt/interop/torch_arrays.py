"""PyTorch's tensors as our arrays, and back. torch is not imported: tensors become NumPy arrays."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from mithril_opt.core.tree import describe_leaf, listed
from mithril_opt.interop.state_dict import placed

Axes: TypeAlias = Sequence[str] | Mapping[str, Sequence[int]]
Names: TypeAlias = Sequence[str] | Mapping[str, str]

# How PyTorch's weights of linear and convolutional layers are turned where input features come before output features.
USUAL_TURNS = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}


def paths_of(names: Names) -> list[str]:
    """The paths among `names`, in their order."""
    if isinstance(names, str):
        raise ValueError(f"names must be a list of paths or a dictionary from PyTorch's names to paths, got {names!r}")
    return list(names.values() if isinstance(names, Mapping) else names)


def misnamed(paths: Sequence[str], needed: Collection[str], known: Collection[str]) -> str:
    """What is wrong with `paths`, which should have all that is `needed` and only what is `known`, each once; "" if nothing."""
    counts = Counter(paths)
    wrong = {
        "missing": [path for path in needed if path not in counts],
        "unknown": [path for path in counts if path not in known],
        "twice": [path for path, count in counts.items() if count > 1],
    }
    return "; ".join(f"{what}: {listed(found)}" for what, found in wrong.items() if found)


def axes_of(transpose: Axes, paths: Iterable[str]) -> Mapping[str, Sequence[int]]:
    """By path, how PyTorch's array is turned into ours."""
    if isinstance(transpose, str):
        raise ValueError(f"transpose must be a list of paths or a dictionary, got {transpose!r}")
    axes = dict(transpose) if isinstance(transpose, Mapping) else dict.fromkeys(transpose, (1, 0))
    if unknown := sorted(set(axes) - set(paths)):
        raise ValueError(f"transpose names {listed(unknown)}, which are not among {listed(paths)}")
    return axes


def back(axes: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    """By path, how our array is turned into PyTorch's."""
    return {path: [int(axis) for axis in np.argsort(own)] for path, own in axes.items()}


def permuted(value: np.ndarray, axes: Sequence[int] | None, path: str) -> np.ndarray:
    """`value` with its axes turned as for the leaf at `path`."""
    if not value.ndim:  # a scalar that a rule keeps for each parameter
        return value
    if axes is not None and sorted(axes) != list(range(value.ndim)):
        raise ValueError(f"transpose has the axes {tuple(axes)} for {path!r}, whose array has {value.ndim} dimensions")
    return value if axes is None else value.transpose(axes).copy()


def fitted(value: Any, leaf: Any, spec: Any, axes: Sequence[int] | None, name: str, path: str, order: str) -> Any:
    """PyTorch's `value` in shape, dtype and place of `leaf`.

    Args:
        value: a tensor or an array.
        leaf: what it is to be.
        spec: the shape that it must have, once turned, and the dtype.
        axes: how it is turned.
        name: what PyTorch calls it.
        path: of the parameter.
        order: what `names` must follow, for the message if it has another shape.
    """
    array, where = as_numpy(value), f"PyTorch's {name!r} of {path!r}"
    turned = array if array.ndim != len(spec.shape) else permuted(array, axes, path)
    if turned.shape != spec.shape:
        hint = _hint(array, spec, path) if axes is None else ""
        raise ValueError(f"{where} has shape {turned.shape}, not {describe_leaf(spec)}{hint or order}")
    if np.iscomplexobj(array) and not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        raise ValueError(f"{where} is {array.dtype}, but {path!r} is {describe_leaf(spec)}")
    return placed(turned.reshape(leaf.shape).astype(leaf.dtype), leaf)


def _hint(value: np.ndarray, spec: Any, path: str) -> str:
    turn = USUAL_TURNS.get(value.ndim)
    if turn is None or value.transpose(turn).shape != spec.shape:
        return ""
    return f"; transpose={[path] if turn == (1, 0) else {path: turn}!r} turns it"


def as_numpy(value: Any) -> np.ndarray:
    """A tensor, or an array, as an array of NumPy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # which NumPy does not know
    return np.asarray(value)


def for_torch(leaf: Any) -> np.ndarray:
    """A copy of `leaf` that `torch.from_numpy` takes: bfloat16 and narrower numbers, which NumPy does not know, as float32."""
    foreign = jnp.issubdtype(leaf.dtype, jnp.floating) and not np.issubdtype(leaf.dtype, np.floating)
    return np.array(leaf, np.float32 if foreign else None)
