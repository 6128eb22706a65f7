"""PyTorch's parameters, both ways."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mithril_opt.core.tree import as_array, describe_leaf, leaves_with_paths, listed, trained
from mithril_opt.core.typing import PyTree
from mithril_opt.interop.torch_arrays import (
    Axes,
    Names,
    as_numpy,
    axes_of,
    back,
    fitted,
    for_torch,
    misnamed,
    paths_of,
    permuted,
)


def params_from_torch(params: PyTree, state_dict: Mapping[str, Any], names: Names, transpose: Axes = ()) -> PyTree:
    """`params` with the numbers of a PyTorch `model.state_dict()`.

    Args:
        params: the parameters in JAX, arrays or `jax.ShapeDtypeStruct`s: structure, shapes, dtypes and placement count.
        state_dict: what PyTorch's model returned, with tensors or NumPy arrays.
        names: a dictionary from PyTorch's names to paths in `params`, {"decoder.weight": "decoder/w"}, in any order; what else
            `state_dict` has (buffers, tied weights) is left out. Or the paths alone, in the order of `state_dict`, which must
            then have nothing else. It is the order of the modules; that of an optimizer's groups may be another one.
        transpose: the paths whose matrices PyTorch keeps transposed, as (out, in): the weights of `torch.nn.Linear`, usually.
            Or a dictionary from paths to what `numpy.transpose` needs to turn PyTorch's array into ours: (2, 3, 1, 0) for the
            weight of a `torch.nn.Conv2d`. What is square fits either way: only you know it.

    Returns:
        A tree like `params`; leaves that do not train are those of `params`.

    Raises:
        ValueError: names that are not the paths of `params` or not in `state_dict`, or an array of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from mithril_opt import params_from_torch
        >>> saved = {"dense.weight": np.array([[1.0, 2.0]]), "dense.bias": np.array([3.0])}
        >>> names = {"dense.weight": "dense/w", "dense.bias": "dense/b"}
        >>> params = {"dense": {"w": jnp.zeros((2, 1)), "b": jnp.zeros(1)}}
        >>> params_from_torch(params, saved, names, transpose=["dense/w"])["dense"]["w"]
        Array([[1.], [2.]], dtype=float32)
    """
    theirs, axes = _names_by_path(params, state_dict, names), axes_of(transpose, paths_of(names))
    order = "" if isinstance(names, Mapping) else "; names must follow the order of state_dict"

    def taken(path: str, leaf: Any) -> Any:
        if path not in theirs:
            return leaf
        name, leaf = theirs[path], as_array(leaf)
        return fitted(state_dict[name], leaf, leaf, axes.get(path), name, path, order)

    return jax.tree.structure(params).unflatten([taken(path, leaf) for path, leaf in leaves_with_paths(params)])


def params_to_torch(params: PyTree, state_dict: Mapping[str, Any], names: Names, transpose: Axes = ()) -> dict[str, Any]:
    """A PyTorch `state_dict` with the numbers of `params`: the inverse of `params_from_torch`.

    Args:
        params: the parameters in JAX.
        state_dict: the `state_dict()` of PyTorch's model, whose entries without a name among `names` are kept.
        names: as for `params_from_torch`.
        transpose: as for `params_from_torch`, which it undoes.

    Returns:
        A dictionary for `load_state_dict` after `torch.as_tensor` of its values. The arrays of `params` are NumPy's, bfloat16
        as float32.

    Raises:
        ValueError: as `params_from_torch` does.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from mithril_opt import params_to_torch
        >>> params = {"w": jnp.array([[1.0], [2.0]])}
        >>> params_to_torch(params, {"weight": np.zeros((1, 2))}, {"weight": "w"}, transpose=["w"])
        {'weight': array([[1., 2.]], dtype=float32)}
    """
    theirs, axes = _names_by_path(params, state_dict, names), back(axes_of(transpose, paths_of(names)))
    given = {}
    for path, leaf in leaves_with_paths(trained(params)):
        name, value = theirs[path], permuted(for_torch(leaf), axes.get(path), path)
        if (expected := np.shape(as_numpy(state_dict[name]))) != value.shape:
            raise ValueError(f"PyTorch's {name!r} has shape {expected}, but {path!r} gives {describe_leaf(value)}")
        given[name] = value
    return {**state_dict, **given}


def _names_by_path(params: PyTree, state_dict: Mapping[str, Any], names: Names) -> dict[str, str]:
    """By path, what PyTorch calls each parameter."""
    _check_model(state_dict)
    expected, paths = [path for path, _ in leaves_with_paths(trained(params))], paths_of(names)
    if wrong := misnamed(paths, expected, set(expected)):
        order = "" if isinstance(names, Mapping) else ", in the order of state_dict"
        raise ValueError(f"names must have the path of each parameter once{order}: {wrong}")
    theirs = list(names) if isinstance(names, Mapping) else list(state_dict)
    if len(theirs) != len(paths):
        raise ValueError(
            f"state_dict has {len(theirs)} entries, but names lists {len(paths)} paths: {listed(theirs)}; where it has more "
            'than the parameters, names must be a dictionary, {"decoder.weight": "decoder/w"}'
        )
    if missing := [name for name in theirs if name not in state_dict]:
        raise ValueError(f"state_dict has no {listed(missing)}; it has {listed(state_dict)}")
    return dict(zip(paths, theirs, strict=True))


def _check_model(state_dict: Any) -> None:
    if not isinstance(state_dict, Mapping) or {"state", "param_groups"} <= set(state_dict):
        found = "an optimizer's" if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise ValueError(f"state_dict must be that of a model, got {found}")
