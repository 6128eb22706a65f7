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
from mithril_opt.demo.checkpoints import Checkpoints
from mithril_opt.demo.storage import FLOAT32, STORAGES
from mithril_opt.demo.train import TWO_GROUPS, named_optimizers, train

METRICS, CURVES = "metrics.jsonl", "curves.png"
CHECKPOINT_EVERY = 50
PRECISIONS = ("float16", "bfloat16", "float32")
# The options that make a run what it is: one that goes on must have the same.
SETTINGS = ("steps", "seed", "precision", "optimizer", "storage")


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
    kept = "how parameters and slots are kept: %(choices)s"
    parser.add_argument("--storage", choices=STORAGES, default=FLOAT32, metavar="NAME", help=kept)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help=f"folder for {METRICS} and {CURVES}")
    add_checkpoint_options(parser)
    return parser


def add_checkpoint_options(parser: Parser) -> None:
    """The options of a run that survives its process."""
    group = parser.add_argument_group("checkpoints", "A run that is killed goes on with the same command and --resume.")
    group.add_argument("--checkpoint-dir", type=Path, default=None, metavar="DIR", help="folder for checkpoints")
    every = whole_number(1, 1_000_000)
    help_text = f"steps from one to the next (default: {CHECKPOINT_EVERY})"
    group.add_argument("--checkpoint-every", type=every, default=argparse.SUPPRESS, metavar="N", help=help_text)
    group.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")


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


def open_checkpoints(options: argparse.Namespace) -> Checkpoints | None:
    """The checkpoints that the options ask for; a ValueError if those in the folder are not to be gone on from."""
    folder, metrics, every = options.checkpoint_dir, options.out / METRICS, getattr(options, "checkpoint_every", None)
    if folder is None:
        for option, given in (("--resume", options.resume), ("--checkpoint-every", every)):
            if given:
                raise ValueError(f"argument {option}: needs --checkpoint-dir")
        return None
    settings = {name: getattr(options, name) for name in SETTINGS}
    try:
        checkpoints = Checkpoints(folder, every or CHECKPOINT_EVERY, settings, metrics)
    except OSError as error:
        raise ValueError(f"argument --checkpoint-dir: cannot write to {str(folder)!r}: {error.strerror}") from None
    if checkpoints.step and not options.resume:
        raise ValueError(
            f"argument --checkpoint-dir: {str(folder)!r} has a run that --resume goes on with; or name another folder"
        )
    return checkpoints


def prepare(out: Path, checkpoints: Checkpoints | None) -> tuple[Path, Path]:
    """The files to be written, in a folder made if need be, with the metrics up to the last checkpoint or without any.

    An OSError if they cannot be written, a ValueError if the checkpoint is another run's.
    """
    out.mkdir(parents=True, exist_ok=True)
    metrics, curves = out / METRICS, out / CURVES
    if checkpoints and checkpoints.step:
        checkpoints.resume()
    else:
        metrics.write_bytes(b"")
    curves.unlink(missing_ok=True)
    return metrics, curves


def run(options: argparse.Namespace, checkpoints: Checkpoints | None, metrics: Path, curves: Path) -> int:
    """Train, write the files, print the summary; the exit status."""
    began, steps, precision = time.perf_counter(), options.steps, options.precision
    corpus = data.build_corpus(data.read_text(), model.VOCABULARY)
    baseline = data.unigram_loss(corpus)
    sizes = f"{len(corpus.train):,} tokens, a vocabulary of {len(corpus.vocabulary):,}"
    done = checkpoints.step if checkpoints else 0
    print(
        f"training on {report.describe_device()} in {precision}: {sizes}{f', from step {done} on' if done else ''}", flush=True
    )
    training = train(corpus, steps, options.seed, precision, options.optimizer, options.storage, checkpoints)
    blocks = report.follow(report.write_metrics(training, metrics), steps, done)
    if checkpoints:
        checkpoints.close()
    records = report.read_metrics(metrics)
    picture.plot(records, baseline, curves)
    seconds = checkpoints.seconds if checkpoints else time.perf_counter() - began
    print(report.summarize(records, blocks, baseline, precision, seconds, [metrics, curves]), flush=True)
    if records[-1]["validation_loss"] < baseline:
        return 0
    print(f"the validation loss did not beat the unigram baseline after {steps} steps", file=sys.stderr)
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run; the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if missing := report.missing_extras(options.checkpoint_dir is not None):
        parser.error(f"{' and '.join(missing)} not found; run: pip install {' '.join(missing)}")
    try:
        checkpoints = open_checkpoints(options)
        metrics, curves = prepare(options.out, checkpoints)
    except OSError as error:
        parser.error(f"argument --out: cannot write to {str(options.out)!r}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    try:
        return run(options, checkpoints, metrics, curves)
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
