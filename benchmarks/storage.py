"""What fewer bits cost: the same trainings with every storage, and a long one in which rounding to nearest stands still:
`python -m benchmarks storage --help`.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import machine, pictures, tables
from benchmarks.progress import Progress
from benchmarks.tables import Row, Table
from benchmarks.tasks import Result, demo, digits
from mithril_opt import Optimizer, Round, pytree
from mithril_opt.core.updates import plain
from mithril_opt.demo.storage import STORAGES, Storage
from mithril_opt.wrappers.base import Wrapper

TASKS: dict[str, Callable[..., Result]] = {"demo": demo, "digits": digits}
SEEDS, STEPS, LONG = 3, {"demo": 600, "digits": 2000}, 20_000
QUICK_SEEDS, QUICK_STEPS, QUICK_LONG = 1, {"demo": 2, "digits": 20}, 100


@pytree
class Nearest(Wrapper):
    """Slots in bfloat16, rounded to nearest: what Quantize is compared with."""

    optimizer: Optimizer

    def init(self, params: Any) -> Any:
        return self._cast(self.optimizer.init(params), jnp.bfloat16)

    def compute_updates(self, params: Any, grads: Any, state: Any, **extra_args: Any) -> tuple[Any, Any]:
        updates, state = self.optimizer.compute_updates(params, grads, self._cast(state, jnp.float32), **extra_args)
        return plain(updates), self._cast(state, jnp.bfloat16)

    def _cast(self, state: Any, dtype: Any) -> Any:
        return state._replace(slots=jax.tree.map(lambda slot: slot.astype(dtype), state.slots))


RIVALS = {
    "slots in bfloat16, to nearest": Storage(Nearest, jnp.float32, ""),
    "parameters in bfloat16, to nearest": Storage(lambda rule: rule, jnp.bfloat16, ""),
}
IN_THE_LONG_RUN = {
    **{STORAGES[name].title: STORAGES[name] for name in ("float32", "16bit", "8bit", "bfloat16", "bfloat16+8bit")},
    "parameters in bfloat16 alone, dithered": Storage(lambda rule: Round(rule, remainder=0), jnp.bfloat16, ""),
    **RIVALS,
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks storage",
        description="Train with every storage, and see what it costs in loss and saves in bytes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help="of weights and batches")
    parser.add_argument("--quick", action="store_true", help="a few steps and one seed, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/storage"), metavar="DIR", help="folder for the results")
    return parser


def compare(name: str, seeds: range, steps: int, begin: Callable[[str], None], end: Callable[[], None]) -> Table:
    """A task with every storage and every seed."""
    rows: list[Row] = []
    for storage in STORAGES.values():
        results = []
        for seed in seeds:
            begin(f"{name}, {storage.title}, seed {seed}")
            results.append(TASKS[name](storage, seed, steps))
            end()
        rows.append(row(storage.title, results, rows[0]["losses"] if rows else None))
    return Table("storage", name, f"`{name}`, {steps:,} steps: loss on held-out data", rows)


def row(title: str, results: list[Result], exact: list[float] | None) -> Row:
    """The losses of all seeds, and their distance from the `exact` ones; None for those themselves."""
    losses = [result.loss for result in results]
    gaps = None if exact is None else [loss - other for loss, other in zip(losses, exact, strict=True)]
    return {
        "candidate": title,
        "stored": results[0].bytes,
        "held_out": statistics.mean(losses),
        "gap": None if gaps is None else statistics.mean(gaps),
        "gaps": gaps,
        "losses": losses,
    }


def long_run(steps: int, begin: Callable[[str], None], end: Callable[[], None]) -> Table:
    """So many steps at a small constant rate that the gradients fall by orders of magnitude."""
    rows: list[Row] = []
    for title, storage in IN_THE_LONG_RUN.items():
        begin(f"long run, {title}")
        result = digits(storage, 0, steps, rate=1e-4, on_all=True)
        rows.append({"candidate": title, "stored": result.bytes, "train_loss": result.loss})
        end()
    return Table("storage", "long", f"`digits`, {steps:,} steps at a rate of 1e-4: loss on the training data", rows)


def draw(found: list[Table], path: Path) -> None:
    """The distance from float32 over the bytes per parameter, a point for every seed; and the long run."""
    *compared, long = found
    figure = pictures.canvas(11, 4.2)
    axes, last = figure.subplots(1, 2, width_ratios=(1.2, 1))
    for table, marker in zip(compared, "os", strict=True):
        points = [(row["stored"], gap) for row in table.rows[1:] for gap in row["gaps"]]
        axes.plot(*zip(*points, strict=True), marker, label=f"{table.workload}, one seed", alpha=0.6)
        stored, gaps = zip(*((row["stored"], row["gap"] or 0.0) for row in table.rows), strict=True)
        axes.plot(stored, gaps, "_", color="black", markersize=14)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="bytes of parameters and state per parameter", ylabel="held-out loss − that of float32")
    axes.legend(frameon=False)
    last.barh([row["candidate"] for row in long.rows], [row["train_loss"] for row in long.rows], color=pictures.INK)
    last.set(xscale="log", xlabel="training loss at the end of the long run")
    last.invert_yaxis()
    for each in (axes, last):
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> int:
    """Read the command line, train, and write what was found; the exit status."""
    options = make_parser().parse_args(arguments)
    seeds = range(QUICK_SEEDS if options.quick else options.seeds)
    steps, long = (QUICK_STEPS, QUICK_LONG) if options.quick else (STEPS, LONG)
    facts = machine.describe()
    with Progress(len(TASKS) * len(STORAGES) * len(seeds) + len(IN_THE_LONG_RUN)) as bar:
        found = [compare(name, seeds, steps[name], bar.begin, bar.end) for name in TASKS]
        found.append(long_run(long, bar.begin, bar.end))
    files = tables.write(options.out, "storage", facts, found)
    draw(found, options.out / "storage.png")
    print(tables.to_markdown(facts, found), flush=True)
    print(f"written: {', '.join(map(str, [*files, options.out / 'storage.png']))}")
    return 0
