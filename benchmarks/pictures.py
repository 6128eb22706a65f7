"""The pictures: a bar per table, and growth as lines in doubly logarithmic axes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.tables import Row, Table

INK = "#1f4e79"
HUES = {"one": "#7fb3d5", "gpt": "#1f6fb2", "many": "#12355b"}


def canvas(width: float, height: float) -> Any:
    """A figure that draws into memory: no window, whatever backend is set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bars(tables: list[Table], device: str, path: Path) -> bool:
    """Draw the time of mithril_opt as a share of its peer's, a bar per table; False if there is nothing to draw."""
    drawn = [table for table in tables if "ratio" in table.rows[0]]
    if not drawn:
        return False
    groups = {work: [table for table in drawn if table.work == work] for work in unique(table.work for table in drawn)}
    figure = canvas(8, 1.1 + 0.24 * len(drawn) + 0.14 * len(groups))
    axes = figure.subplots()
    place, middles = 0.0, []
    for group in groups.values():
        middles.append(place + (len(group) - 1) / 2)
        for table in group:
            bar(axes, place, table)
            place += 1
        place += 0.6
    axes.set_yticks(middles, map(group_label, groups.values()))
    axes.set_ylim(place - 0.8, -0.8)
    finish(axes, device)
    figure.savefig(path, dpi=120)
    return True


def bar(axes: Any, place: float, table: Table) -> None:
    """One bar with its number at the end."""
    ratio, name = table.rows[0]["ratio"], table.workload.split(",")[0]
    known = axes.get_legend_handles_labels()[1]
    axes.barh(place, ratio, height=0.84, color=HUES.get(name, INK), label=None if name in known else name, zorder=2)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.annotate(f"{ratio:.2f}", (ratio, place), (4, 0), textcoords="offset points", va="center", fontsize=8, bbox=paper)


def group_label(group: list[Table]) -> str:
    """The work, in words, and who the peer is."""
    return f"{group[0].title.split(', `')[0]}\nbeside {group[0].rows[1]['candidate']}"


def finish(axes: Any, device: str) -> None:
    """Axes, legend and the line at which both are equally fast."""
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle="--", zorder=1)
    axes.set(
        xlabel="time of mithril_opt / time of the peer (shorter is faster)", xlim=(0, max(1.15, axes.get_xlim()[1] * 1.05))
    )
    axes.set_title(f"mithril_opt beside its peers on {device}", fontsize=10)
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")


QUANTITIES = {"ms": "step, ms", "prepare_s": "trace + lower, s", "compile_s": "compile, s"}


def growth(sweeps: dict[str, list[Row]], exponents: dict[tuple[str, str, str], float], path: Path) -> None:
    """Draw every quantity of every sweep, a line per candidate.

    Args:
        sweeps: by what grows, rows with `candidate`, `size` and the quantities.
        exponents: of the fitted power laws, by sweep, quantity and candidate.
        path: the PNG file.
    """
    figure = canvas(10, 6.2)
    grid = figure.subplots(len(sweeps), len(QUANTITIES), squeeze=False)
    for axes_row, (what, rows) in zip(grid, sweeps.items(), strict=True):
        for axes, (key, label) in zip(axes_row, QUANTITIES.items(), strict=True):
            powers = {name: power for (sweep, quantity, name), power in exponents.items() if (sweep, quantity) == (what, key)}
            curves(axes, rows, key, powers)
            axes.set(xlabel=what, ylabel=label)
    figure.savefig(path, dpi=120)


def curves(axes: Any, rows: list[Row], key: str, powers: dict[str, float]) -> None:
    """One quantity over the size, a line per candidate, on at least a decade."""
    for candidate, color in zip(powers, (HUES["gpt"], "#9a9da3"), strict=False):
        own = [row for row in rows if row["candidate"] == candidate]
        label = f"{candidate}: $n^{{{powers[candidate]:.2f}}}$"
        axes.loglog([row["size"] for row in own], [row[key] for row in own], "o-", color=color, markersize=3.5, label=label)
    low, high = axes.get_ylim()
    middle, half = (low * high) ** 0.5, max((high / low) ** 0.5, 10**0.6)
    axes.set_ylim(middle / half, middle * half)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter("")
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def unique(names: Iterable[str]) -> list[str]:
    """Each name once, in order."""
    return list(dict.fromkeys(names))
