"""One problem, several rules, each at several rates: `python -m benchmarks race --help`.

The problem is the demo's language model. The rates of a rule are trained side by side, a `vmap` over them: one compilation for
each rule. The rate that generalizes best is drawn, against steps and against seconds; what a step takes is timed with that rate
alone.
"""

import argparse
import functools
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine, pictures, tables
from benchmarks.progress import Progress
from benchmarks.tables import Row, Table
from mithril_opt.demo import data, model
from mithril_opt.demo.train import BATCH, evaluate, make_named, named_optimizers, windows

RULES = ("AdamW", "Muon", "SOAP", "ScheduleFreeAdamW", "Prodigy")
FACTORS = (0.3, 1.0, 3.0)  # of the default rate of each rule
STEPS, QUICK_STEPS = 300, 3
QUICK_TEXT = 1000  # tokens of the held-out text
SMOOTHING = 0.9


class Problem(NamedTuple):
    """The first parameters, the text, where each step's windows begin, and the text to evaluate on."""

    params: model.Params
    tokens: jax.Array
    starts: jax.Array
    held_out: jax.Array


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks race",
        description="Train the demo's model with several rules at swept rates, and draw the losses.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rules", nargs="+", choices=named_optimizers(), default=RULES, metavar="RULE", help="%(choices)s")
    parser.add_argument("--factors", nargs="+", type=float, default=FACTORS, metavar="F", help="of the default rate of each")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="training steps")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/race"), metavar="DIR", help="folder for the results")
    return parser


def make_problem(steps: int, held_out: int | None = None) -> Problem:
    """The same for all rules, with the first tokens of the held-out text, or all."""
    corpus, generator = data.build_corpus(data.read_text(), model.VOCABULARY), np.random.default_rng(0)
    params = model.init(generator)
    starts = [data.random_starts(generator, len(corpus.train), BATCH, model.CONTEXT) for _ in range(steps)]
    return Problem(params, jnp.asarray(corpus.train), jnp.asarray(np.stack(starts)), jnp.asarray(corpus.validation[:held_out]))


@functools.partial(jax.jit, static_argnames="name")
def train(name: str, rate: jax.Array, problem: Problem) -> tuple[jax.Array, jax.Array]:
    """The loss of every step, and that of the evaluation parameters on the held-out text."""
    optimizer = make_named(name, len(problem.starts), rate)

    def step(carry: tuple[Any, Any], starts: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        params, state = carry
        loss, grads = jax.value_and_grad(model.loss)(params, windows(problem.tokens, starts))
        return optimizer.update(params, grads, state), loss

    (params, state), losses = jax.lax.scan(step, (problem.params, optimizer.init(problem.params)), problem.starts)
    chosen = data.consecutive_starts(len(problem.held_out), model.CONTEXT)
    return losses, evaluate(optimizer.eval_params(params, state), problem.held_out, chosen)


def race(name: str, factors: list[float], problem: Problem) -> Row:
    """A rule at all its rates, and the best of them alone."""
    rates = jnp.asarray(factors) * named_optimizers()[name]().rate
    losses, held_out = jax.vmap(train, in_axes=(None, 0, None))(name, rates, problem)
    best = int(jnp.argmin(jnp.where(jnp.isnan(held_out), jnp.inf, held_out)))
    alone = train.lower(name, rates[best], problem).compile()
    began = time.perf_counter()
    jax.block_until_ready(alone(rates[best], problem))
    seconds = (time.perf_counter() - began) / len(problem.starts)
    rows = dict(zip(map(float, rates), map(float, held_out), strict=True))
    return {
        "candidate": f"{name}, rate {rates[best]:.2g}",
        "ms": 1e3 * seconds,
        "held_out": float(held_out[best]),
        "all": rows,
        "losses": [float(loss) for loss in losses[best]],
    }


def smooth(losses: list[float]) -> list[float]:
    """Their moving average, corrected for its start."""
    averages, total = [], 0.0
    for t, loss in enumerate(losses, start=1):
        total = SMOOTHING * total + (1 - SMOOTHING) * loss
        averages.append(total / (1 - SMOOTHING**t))
    return averages


def draw(rows: list[Row], path: Path) -> None:
    """The losses against steps and against seconds, a line for each rule."""
    figure = pictures.canvas(10, 4.2)
    for axes, label in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for row in rows:
            unit = 1 if label == "step" else row["ms"] / 1e3
            losses = smooth(row["losses"])
            axes.plot([unit * (i + 1) for i in range(len(losses))], losses, label=row["candidate"], linewidth=1.2)
        axes.set(xlabel=label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.axes[0].set(ylabel="training loss, smoothed")
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> int:
    """Read the command line, train, and write what was found; the exit status."""
    options = make_parser().parse_args(arguments)
    problem = make_problem(QUICK_STEPS, QUICK_TEXT) if options.quick else make_problem(options.steps)
    facts, rows = machine.describe(), []
    with Progress(len(options.rules)) as bar:
        for name in options.rules:
            bar.begin(name)
            rows.append(race(name, options.factors, problem))
            bar.end()
    rows.sort(key=lambda row: row["held_out"] if math.isfinite(row["held_out"]) else math.inf)
    found = [Table("race", "demo", f"The demo's model, {len(problem.starts)} steps, each rule at its best rate", rows)]
    files = tables.write(options.out, "race", facts, found)
    draw(rows, options.out / "race.png")
    print(tables.to_markdown(facts, found), flush=True)
    print(f"written: {', '.join(map(str, [*files, options.out / 'race.png']))}")
    return 0
