"""PyTorch's optimizer states, both ways, so that a run can be moved. torch is not imported: tensors become NumPy arrays."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.state import Counterpart, OptState, check_state, checked_step
from mithril_opt.core.tree import describe_leaf, leaves_with_paths, listed, trained
from mithril_opt.core.typing import PyTree
from mithril_opt.interop.state_dict import placed

Axes: TypeAlias = Sequence[str] | Mapping[str, Sequence[int]]


def state_from_torch(
    optimizer: Optimizer,
    params: PyTree,
    state_dict: Mapping[str, Any],
    names: Sequence[str],
    transpose: Axes = (),
    step: int | None = None,
) -> OptState:
    """The state of `optimizer` with the numbers of a PyTorch `optimizer.state_dict()` of the same rule.

    Args:
        optimizer: one whose rule PyTorch has too: `SGD`, `AdamW`, `NAdam`, … `Adafactor` without `beta1`, with
            `min_dim_size_to_factor=1` and as `matrix_axes` those that are PyTorch's last two: (-1, -2) for a transposed matrix.
        params: the parameters in JAX.
        state_dict: what PyTorch's optimizer returned, with tensors or NumPy arrays.
        names: for each parameter, in the order in which PyTorch's optimizer was given them, its path in `params`
            ("decoder/w").
        transpose: the paths whose matrices PyTorch keeps transposed, as (out, in): the weights of `torch.nn.Linear`, usually.
            Or a dictionary from paths to what `numpy.transpose` needs to turn PyTorch's array into ours: (2, 3, 1, 0) for the
            weight of a `torch.nn.Conv2d`.
        step: number of updates made, for a state that does not say it (that of `torch.optim.SGD`).

    Returns:
        A state as `optimizer.init(params)` makes it, in dtypes and placement too.

    Raises:
        ValueError: an optimizer without a counterpart, a state of another one, names that are not the paths of `params`, a slot
            that is missing, unknown or of another shape, complex moments, parameters that made different numbers of updates,
            or a number that is not known.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from mithril_opt import Adam, state_from_torch
        >>> saved = {"state": {0: {"step": 3.0, "exp_avg": np.ones(2), "exp_avg_sq": np.ones(2)}}, "param_groups": []}
        >>> state = state_from_torch(Adam(), {"w": jnp.zeros(2)}, saved, names=["w"])
        >>> state.step, state.slots.mu
        (Array(3, dtype=int32), {'w': Array([1., 1.], dtype=float32)})
    """
    theirs, axes = _counterpart(optimizer), _axes(transpose, names)
    _check_real(optimizer, params)
    template, entries = optimizer.init(params), _entries(theirs, state_dict, params, names)
    slots = {slot: tree for slot, tree in template.slots._asdict().items() if tree is not None}
    _check_entries(entries, theirs, slots)
    count = jnp.asarray(_common_step(theirs, list(entries.values()), step), jnp.int32)
    filled = {
        slot: _filled(tree, theirs.slots.get(slot), entries, axes, _reduced(theirs, params, slot))
        for slot, tree in slots.items()
    }
    return template._replace(step=count, slots=template.slots._replace(**filled))


def state_to_torch(
    optimizer: Optimizer,
    params: PyTree,
    state: OptState,
    state_dict: Mapping[str, Any],
    names: Sequence[str],
    transpose: Axes = (),
) -> dict[str, Any]:
    """A PyTorch `state_dict` with the numbers of `state`: the inverse of `state_from_torch`.

    Args:
        optimizer: the optimizer that `state` belongs to.
        params: the parameters in JAX.
        state: its state.
        state_dict: the `state_dict()` of PyTorch's optimizer, fresh or not; its `param_groups` are kept.
        names: for each parameter, in PyTorch's order, its path in `params`.
        transpose: as for `state_from_torch`, which it undoes.

    Returns:
        A dictionary for `load_state_dict`, whose arrays are NumPy's: turn them into tensors with `torch.from_numpy`. The count
        of updates is in it, but for `torch.optim.SGD`, which has none.

    Raises:
        ValueError: as `state_from_torch` does.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AdaGrad, state_to_torch
        >>> optimizer, params = AdaGrad(), {"w": jnp.ones(2)}
        >>> _, state = optimizer.update(params, params, optimizer.init(params))
        >>> state_to_torch(optimizer, params, state, {"state": {}, "param_groups": []}, names=["w"])["state"]
        {0: {'sum': array([1., 1.], dtype=float32), 'step': array(1., dtype=float32)}}
    """
    theirs, axes = _counterpart(optimizer), _axes(transpose, names)
    check_state(optimizer, state)
    _check_real(optimizer, params)
    keys = dict(zip(names, _keys(theirs, state_dict, params, names), strict=True))
    entries: dict[Any, dict[str, Any]] = {key: {} for key in keys.values()}
    for slot, tree in state.slots._asdict().items():
        reduced = _reduced(theirs, params, slot)
        for path, leaf in leaves_with_paths(tree) if slot in theirs.slots else ():
            back = np.argsort(axes[path]) if path in axes else None
            value = np.array(leaf).reshape(_unreduced(leaf.shape, reduced.get(path)))
            entries[keys[path]][theirs.slots[slot]] = _permuted(value, back, path)
    if theirs.counts:
        for entry in entries.values():
            entry["step"] = np.array(state.step, np.float32)
    return {"state": {key: entry for key, entry in entries.items() if entry}, "param_groups": state_dict["param_groups"]}


def _counterpart(optimizer: Optimizer) -> Counterpart:
    if optimizer.torch is None:
        raise ValueError(f"{type(optimizer).__name__} has no counterpart in PyTorch with the same state; Adam has, for one")
    return optimizer.torch


def _axes(transpose: Axes, names: Sequence[str]) -> Mapping[str, Sequence[int]]:
    if isinstance(transpose, str):
        raise ValueError(f"transpose must be a list of paths or a dictionary, got {transpose!r}")
    axes = dict(transpose) if isinstance(transpose, Mapping) else dict.fromkeys(transpose, (1, 0))
    unknown = sorted(set(axes) - set(names))
    if unknown:
        raise ValueError(f"transpose names {listed(unknown)}, which are not among {listed(names)}")
    return axes


def _check_real(optimizer: Optimizer, params: PyTree) -> None:
    """PyTorch squares real and imaginary part of a complex gradient apart, so that its moments mean something else."""
    paths = [path for path, leaf in leaves_with_paths(trained(params)) if jnp.iscomplexobj(leaf)]
    if paths and _counterpart(optimizer).squares:
        raise ValueError(f"the second moments of complex parameters cannot be moved: {listed(paths)}")


def _keys(theirs: Counterpart, state_dict: Mapping[str, Any], params: PyTree, names: Sequence[str]) -> list[Any]:
    """What PyTorch calls the parameters `names`, after checking that `state_dict` and `names` may be right."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        found = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise ValueError(f"state_dict must be that of an optimizer, with 'state' and 'param_groups'; got {found}")
    for group in state_dict["param_groups"]:
        if not theirs.settings <= set(group) or theirs.foreign & set(group):
            raise ValueError(
                f"this is no state of torch.optim.{theirs.name}, whose groups have {sorted(theirs.settings)}; "
                f"these have {sorted(group)}"
            )
        others = {name: group[name] for name, value in theirs.values.items() if group.get(name, value) != value}
        if others:
            raise ValueError(f"this is no state of torch.optim.{theirs.name}: a parameter group has {others}")
    paths = [path for path, _ in leaves_with_paths(trained(params))]
    if sorted(names) != sorted(paths):
        raise ValueError(
            f"names must list the paths of the parameters in PyTorch's order, {listed(paths)}; got {listed(names)}"
        )
    keys = [key for group in state_dict["param_groups"] for key in group["params"]] or list(range(len(names)))
    if len(keys) != len(names):
        raise ValueError(f"PyTorch's optimizer has {len(keys)} parameters, but names lists {len(names)}: {listed(names)}")
    return keys


def _entries(
    theirs: Counterpart, state_dict: Mapping[str, Any], params: PyTree, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """By path, what PyTorch keeps for each parameter."""
    keys = _keys(theirs, state_dict, params, names)
    entries = [state_dict["state"].get(key, {}) for key in keys]
    kept = [{name: value for name, value in entry.items() if value is not None} for entry in entries]
    return dict(zip(names, kept, strict=True))


def _check_entries(entries: Mapping[str, Mapping[str, Any]], theirs: Counterpart, slots: Mapping[str, PyTree]) -> None:
    empty = [path for path, entry in entries.items() if not entry]
    if 0 < len(empty) < len(entries):
        raise ValueError(
            f"PyTorch has no state for {listed(empty)}, which never got a gradient; one clock cannot hold that: leave what "
            "does not train out of both optimizers"
        )
    kept = {theirs.slots[slot]: dict(leaves_with_paths(tree)) for slot, tree in slots.items() if slot in theirs.slots}
    for path, entry in entries.items():
        needed = {name for name, leaves in kept.items() if path in leaves}
        if entry and set(entry) - {"step"} != needed:
            raise ValueError(
                f"PyTorch's state of {path!r} has {sorted(entry)}, but this optimizer needs {sorted(needed)} of torch.optim."
                f"{theirs.name}"
            )


def _reduced(theirs: Counterpart, params: PyTree, slot: str) -> dict[str, int]:
    """By path, the axis that our `slot` lacks and PyTorch keeps with size 1."""
    reduced = {path: theirs.reduced(path, leaf) for path, leaf in leaves_with_paths(trained(params))}
    return {path: axes[slot] for path, axes in reduced.items() if slot in axes}


def _unreduced(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else (*shape[:axis], 1, *shape[axis:])


def _filled(
    tree: PyTree,
    name: str | None,
    entries: Mapping[str, Mapping[str, Any]],
    axes: Mapping[str, Sequence[int]],
    reduced: Mapping[str, int],
) -> PyTree:
    """The tree of a slot with what PyTorch keeps under `name`, or with ones, for a mark that an update was made; as it is where
    none has been made yet."""

    def fill(path: str, leaf: Any) -> Any:
        if name is None:
            return jnp.ones_like(leaf)
        value = _permuted(_numpy(entries[path][name]), axes.get(path), path)
        expected = jax.ShapeDtypeStruct(_unreduced(leaf.shape, reduced.get(path)), leaf.dtype)
        if value.shape != expected.shape:
            raise ValueError(f"PyTorch's {name!r} of {path!r} has shape {value.shape}, not {describe_leaf(expected)}")
        return placed(value.reshape(leaf.shape).astype(leaf.dtype), leaf)

    leaves = [fill(path, leaf) if entries[path] else leaf for path, leaf in leaves_with_paths(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _permuted(value: np.ndarray, axes: Any, path: str) -> np.ndarray:
    if not value.ndim:  # a scalar that a rule keeps for each parameter
        return value
    if axes is not None and sorted(axes) != list(range(value.ndim)):
        raise ValueError(f"transpose has the axes {tuple(axes)} for {path!r}, whose array has {value.ndim} dimensions")
    return value if axes is None else value.transpose(axes).copy()


def _numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # which NumPy does not know
    return np.asarray(value)


def _common_step(theirs: Counterpart, entries: list[dict[str, Any]], step: int | None) -> int:
    counts = {int(entry["step"]) for entry in entries if "step" in entry} | (set() if step is None else {checked_step(step)})
    if len(counts) > 1:
        raise ValueError(f"the parameters made different numbers of updates, {sorted(counts)}; one clock cannot hold them")
    if not counts and (not theirs.counts or any(entries)):
        raise ValueError(f"the state of torch.optim.{theirs.name} does not count its updates; give their number as step=")
    return next(iter(counts), 0)
