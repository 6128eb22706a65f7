"""The picture of a run: losses, learning rates, the gradient's norm and the loss scale over the steps."""

from pathlib import Path
from typing import Any

from mithril_opt.demo.train import CLIP_NORM


def plot(records: list[dict[str, Any]], baseline: float, path: Path) -> None:
    """Write the picture of the run whose records are given, with the unigram baseline as a line, to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [record for record in records if "loss" in record]
    panels = 4 if len(set(column(steps, "loss_scale"))) > 1 else 3
    figure = Figure(figsize=(8, 2.2 * panels + 2.4), layout="constrained")
    FigureCanvasAgg(figure)  # draws into memory: no window, whatever backend is set
    losses, rates, norms, *scales = figure.subplots(panels, 1, sharex=True, height_ratios=[2] + [1] * (panels - 1))
    plot_losses(losses, steps, [record for record in records if "validation_loss" in record], baseline)
    plot_rates(rates, steps)
    plot_norms(norms, steps)
    for axes in scales:
        plot_loss_scale(axes, steps)
    bottom: Any = figure.axes[-1]
    bottom.set_xlabel("step")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def plot_losses(axes: Any, steps: list[dict[str, Any]], validations: list[dict[str, Any]], baseline: float) -> None:
    """The loss of every batch, that of the held-out text, and the baseline."""
    axes.plot(column(steps, "step"), column(steps, "loss"), color="C0", alpha=0.6, linewidth=0.8, label="training")
    axes.plot(
        column(validations, "step"), column(validations, "validation_loss"), "o-", color="C1", markersize=4, label="held out"
    )
    axes.axhline(baseline, color="gray", linestyle="--", label="held out, unigram baseline")
    axes.set(title="mithril_opt.demo: a small language model", ylabel="loss (nats per token)")
    axes.legend(frameon=False)


def plot_rates(axes: Any, steps: list[dict[str, Any]]) -> None:
    """The learning rate of every group."""
    for name, color in zip(steps[0]["rates"], ("C3", "C4"), strict=False):
        axes.plot(column(steps, "step"), [record["rates"][name] for record in steps], color=color, label=name)
    axes.set(ylabel="learning rate", ylim=(0, None))
    axes.legend(frameon=False)


def plot_norms(axes: Any, steps: list[dict[str, Any]]) -> None:
    """The gradient's global norm before clipping."""
    axes.plot(column(steps, "step"), column(steps, "grad_norm"), color="C2", linewidth=0.8)
    axes.axhline(CLIP_NORM, color="gray", linestyle="--", label="clipped above")
    axes.set(ylabel="gradient norm", ylim=(0, None))
    axes.legend(frameon=False)


def plot_loss_scale(axes: Any, steps: list[dict[str, Any]]) -> None:
    """The loss scale, with the skipped steps marked."""
    skipped = [record for record in steps if record["skipped"]]
    axes.step(column(steps, "step"), column(steps, "loss_scale"), where="post", color="C5")
    axes.plot(column(skipped, "step"), column(skipped, "loss_scale"), "x", color="C3", label=f"{len(skipped)} steps skipped")
    axes.set_yscale("log", base=2)
    axes.set(ylabel="loss scale")
    axes.legend(frameon=False)


def column(records: list[dict[str, Any]], key: str) -> list[Any]:
    """The values under `key`."""
    return [record[key] for record in records]
