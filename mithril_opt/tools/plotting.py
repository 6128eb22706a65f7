"""Pictures of schedules and of records; matplotlib is imported when one is drawn."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mithril_opt.core.schedule import as_schedule
from mithril_opt.core.state import BAD_INPUT, OVERFLOW
from mithril_opt.wrappers.record import found, written


def plot_schedule(schedule: Any, num_steps: int, ax: Any = None, *, steps_per_epoch: int | None = None) -> Any:
    """Draw the rates that `num_steps` updates use, with the values at the start, at the peak and at the end.

    One schedule has its values written beside the curve, several have them in the legend.

    Args:
        schedule: a schedule or a function of the step; or several of them on one axis, a list or a dictionary by label.
        num_steps: the number of updates: the steps 0 … num_steps − 1 are drawn.
        ax: a matplotlib `Axes` to draw on; the current one if not given.
        steps_per_epoch: number of updates in an epoch; if given the axis counts epochs.

    Returns:
        The `Axes`.

    Raises:
        ValueError: `num_steps` or `steps_per_epoch` is below 1, or there is no schedule.
        TypeError: something is no schedule.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> from mithril_opt import OneCycleLR, StepLR, plot_schedule
        >>> ax = plot_schedule({"steps": StepLR(0.5, 30), "one cycle": OneCycleLR(0.5, 100)}, num_steps=100)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['steps: 0.5 → 0.5 → 0.0005', 'one cycle: 0.02 → 0.5 → 2e-06']
    """
    curves = _curves(schedule, num_steps)
    per_unit = _at_least_one("steps_per_epoch", 1 if steps_per_epoch is None else steps_per_epoch)
    ax = _current_axes() if ax is None else ax
    for label, values in curves.items():
        marks = [0, int(np.argmax(values)), len(values) - 1]
        summary = " → ".join(f"{values[k]:.3g}" for k in marks)
        x = np.arange(len(values)) / per_unit
        (line,) = ax.plot(x, values, label=f"{label}: {summary}")
        ax.plot(x[marks], values[marks], "o", color=line.get_color(), markersize=4)
        if len(curves) == 1:
            _write_values(ax, x, values, marks)
    ax.set(xlabel="step" if steps_per_epoch is None else "epoch", ylabel="learning rate")
    ax.margins(x=0.06, y=0.12)
    if len(curves) > 1:
        bottom, top = ax.get_ylim()
        ax.set_ylim(bottom, top + 0.09 * len(curves) * (top - bottom))  # room for the legend
        ax.legend(loc="upper right")
    return ax


def plot_range_test(result: Any, ax: Any = None) -> Any:
    """Draw the losses of an `lr_range_test` over the rates, with the suggestion.

    Args:
        result: what `lr_range_test` returned.
        ax: a matplotlib `Axes` to draw on; the current one if not given.

    Returns:
        The `Axes`.
    """
    ax = _current_axes() if ax is None else ax
    ax.plot(result.learning_rates, result.losses)
    if result.suggestion is not None:
        ax.axvline(result.suggestion, color="tab:red", linestyle="--", label=f"steepest descent: {result.suggestion:.2g}")
        ax.legend()
    ax.set(xscale="log", xlabel="learning rate", ylabel="loss")
    return ax


def plot_record(optimizer: Any, state: Any, ax: Any = None) -> Any:
    """Draw what a `Record` has written down: the norms of gradients, updates and parameters over the steps, on a logarithmic
    axis, with what was clipped and what was skipped.

    Args:
        optimizer: a `Record`, what is around one, or a trainer.
        state: its state, which is read on the host.
        ax: a matplotlib `Axes` to draw on; the current one if not given.

    Returns:
        The `Axes`.

    Raises:
        ValueError: there is no `Record` around the optimizer.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> import jax.numpy as jnp
        >>> from matplotlib.figure import Figure
        >>> from mithril_opt import SGD, Record, plot_record
        >>> optimizer, params = Record(SGD()), jnp.ones(2)
        >>> params, state = optimizer.update(params, params, optimizer.init(params))
        >>> [text.get_text() for text in plot_record(optimizer, state, Figure().subplots()).get_legend().get_texts()]
        ['gradients', 'updates', 'parameters']
    """
    rows = written(*found(optimizer, state))
    ax = _current_axes() if ax is None else ax
    steps = np.array([row.step for row in rows])
    for name, label in (("grad_norm", "gradients"), ("update_norm", "updates"), ("param_norm", "parameters")):
        norms = np.array([getattr(row, name) for row in rows], float)
        ax.plot(steps, np.where(np.isfinite(norms) & (norms > 0), norms, np.nan), ".-", label=label)
    norms = np.array([row.grad_norm for row in rows], float)
    clipped = [i for i, row in enumerate(rows) if row.clipped and np.isfinite(norms[i])]
    if clipped:
        ax.plot(steps[clipped], norms[clipped], "v", color="tab:red", label="clipped")
    for i, step in enumerate(sorted({int(row.step) for row in rows if row.verdict in (BAD_INPUT, OVERFLOW)})):
        ax.axvline(step, color="black", linestyle=":", label="skipped" if i == 0 else None)
    ax.set(yscale="log", xlabel="step", ylabel="norm")
    ax.legend()
    return ax


def _current_axes() -> Any:
    import matplotlib.pyplot as plt

    return plt.gca()


def _curves(schedule: Any, num_steps: int) -> dict[str, np.ndarray]:
    """The values at steps 0 … num_steps − 1 by label."""
    steps = np.arange(_at_least_one("num_steps", num_steps))
    if not isinstance(schedule, Mapping):
        several = schedule if isinstance(schedule, list | tuple) else [schedule]
        schedule = {f"{i + 1}. {_name(one)}" if len(several) > 1 else _name(one): one for i, one in enumerate(several)}
    if not schedule:
        raise ValueError("plot_schedule: there is no schedule to draw")
    return {str(label): np.asarray(_callable(one)(steps)) for label, one in schedule.items()}


def _callable(schedule: Any) -> Any:
    if not callable(schedule):
        raise TypeError(f"plot_schedule takes a schedule or a function of the step, got {schedule!r}")
    return as_schedule(schedule)


def _name(schedule: Any) -> str:
    return getattr(schedule, "__name__", type(schedule).__name__)


def _at_least_one(name: str, count: int) -> int:
    if count < 1:
        raise ValueError(f"plot_schedule: {name} must be at least 1, got {count}")
    return count


def _write_values(ax: Any, x: np.ndarray, values: np.ndarray, marks: list[int]) -> None:
    """The values beside their dots, each dot once, on the side where the curve is not."""
    rises, falls = values[:2][-1] > values[0], values[-2:][0] > values[-1]
    start, peak, end = marks
    sides = {peak: ("center", 6), start: ("left", -14 if rises else 6), end: ("right", -14 if falls else 6)}
    for k, (side, up) in sides.items():
        ax.annotate(f"{values[k]:.3g}", (x[k], values[k]), xytext=(0, up), textcoords="offset points", ha=side)
