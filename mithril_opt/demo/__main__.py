"""The command line: `python -m mithril_opt.demo --help`."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mithril_opt.demo import data, model, picture, report
from mithril_opt.demo.train import TWO_GROUPS, named_optimizers, train

METRICS, CURVES = "metrics.jsonl", "curves.png"
PRECISIONS = ("float16", "bfloat16", "float32")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(
        prog="python -m mithril_opt.demo",
        description="Train a small language model on the Python language reference and draw its loss curves.",
        epilog="Exit status: 0 if the model beats the unigram baseline on held-out text, 1 if not, 2 if the run cannot start.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=whole_number(1, 1_000_000), default=600, metavar="N", help="training steps")
    parser.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=0, metavar="N", help="seed of weights and batches")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="what the model computes in")
    optimizers = [TWO_GROUPS, *named_optimizers()]
    help_text = "two groups, or one rule, whose peak rate is its default rate; AdamW takes what it is not for"
    as_spelled = lambda name: next((own for own in optimizers if own.lower() == name.lower()), name)  # noqa: E731
    parser.add_argument("--optimizer", type=as_spelled, choices=optimizers, default=TWO_GROUPS, help=help_text)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help=f"folder for {METRICS} and {CURVES}")
    return parser


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """An argument type: a whole number from `low` to `high`."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text!r}")
        return number

    return convert


def prepare(out: Path) -> tuple[Path, Path]:
    """The files to be written, in a folder made if need be, without those of an earlier run; an OSError if that fails."""
    out.mkdir(parents=True, exist_ok=True)
    metrics, curves = out / METRICS, out / CURVES
    metrics.write_bytes(b"")
    curves.unlink(missing_ok=True)
    return metrics, curves


def run(steps: int, seed: int, precision: str, optimizer: str, metrics: Path, curves: Path) -> int:
    """Train, write the files, print the summary; the exit status."""
    began = time.perf_counter()
    corpus = data.build_corpus(data.read_text(), model.VOCABULARY)
    baseline = data.unigram_loss(corpus)
    sizes = f"{len(corpus.train):,} tokens, a vocabulary of {len(corpus.vocabulary):,}"
    print(f"training on {report.describe_device()} in {precision}: {sizes}", flush=True)
    blocks = report.follow(report.write_metrics(train(corpus, steps, seed, precision, optimizer), metrics), steps)
    records = [record for block in blocks for record in block.records]
    picture.plot(records, baseline, curves)
    print(report.summarize(blocks, baseline, precision, time.perf_counter() - began, [metrics, curves]), flush=True)
    if records[-1]["validation_loss"] < baseline:
        return 0
    print(f"the validation loss did not beat the unigram baseline after {steps} steps", file=sys.stderr)
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run; the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if missing := report.missing_extras():
        parser.error(f'{" and ".join(missing)} not found; run: pip install "mithril-opt[demo]"')
    try:
        metrics, curves = prepare(options.out)
    except OSError as error:
        parser.error(f"argument --out: cannot write to {str(options.out)!r}: {error.strerror}")
    try:
        return run(options.steps, options.seed, options.precision, options.optimizer, metrics, curves)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at exit
        return 141


def interrupt(number: int, frame: Any) -> NoReturn:
    """End at once, on Ctrl-C. A KeyboardInterrupt that passes through JAX may get lost, or crash Python when it shuts down."""
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    sys.exit(main())
