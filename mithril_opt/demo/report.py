"""What the demo prints and writes: progress, metrics, a summary."""

import importlib.util
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from mithril_opt.demo import model
from mithril_opt.demo.train import BATCH, Block

Record = dict[str, Any]


def missing_extras(checkpoints: bool) -> list[str]:
    """What is needed besides JAX and not installed, as pip calls it."""
    packages = {"matplotlib": "matplotlib", "tqdm": "tqdm", **({"orbax": "orbax-checkpoint"} if checkpoints else {})}
    return [package for module, package in packages.items() if importlib.util.find_spec(module) is None]


def write_metrics(blocks: Iterable[Block], path: Path) -> Iterator[Block]:
    """Pass the blocks on, and append each of their records as a line of JSON before that."""
    with path.open("a", encoding="utf-8", buffering=1) as file:
        for block in blocks:
            file.writelines(json.dumps(_finite(record), allow_nan=False) + "\n" for record in block.records)
            yield block


def _finite(record: Record) -> Record:
    """`record` with null for numbers that JSON does not know."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}


def read_metrics(path: Path) -> list[Record]:
    """The records that were written, NaN for numbers that JSON does not know."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{name: math.nan if value is None else value for name, value in json.loads(line).items()} for line in lines]


def follow(blocks: Iterable[Block], steps: int, done: int = 0) -> list[Block]:
    """All the blocks, shown as they come: in a bar if standard error is a terminal, else in a line per validation."""
    if sys.stderr is not None and sys.stderr.isatty():
        return _follow_in_bar(blocks, steps, done)
    return _follow_in_lines(blocks, steps)


def _follow_in_bar(blocks: Iterable[Block], steps: int, done: int) -> list[Block]:
    from tqdm import tqdm

    seen = []
    with tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True) as bar:
        for block in blocks:
            seen.append(block)
            if "loss" in block.records[0]:
                bar.update(len(block.records))
                bar.set_postfix_str(_describe(block.records))
    return seen


def _follow_in_lines(blocks: Iterable[Block], steps: int) -> list[Block]:
    seen: list[Block] = []
    for block in blocks:
        last = block.records[-1]
        if "validation_loss" in last and seen:
            trained = _describe(seen[-1].records)
            print(f"step {last['step']}/{steps}: {trained}, validation {last['validation_loss']:.2f}", flush=True)
        seen.append(block)
    return seen


def _describe(records: list[Record]) -> str:
    """`loss 3.21, rate 1.0e-03`: the mean loss of some steps, and the rate in the last of them, the body's if there are two."""
    loss, rates = sum(record["loss"] for record in records) / len(records), records[-1]["rates"]
    return f"loss {loss:.2f}, rate {rates.get('body', next(iter(rates.values()))):.1e}"


def summarize(
    records: list[Record], blocks: list[Block], baseline: float, precision: str, seconds: float, written: list[Path]
) -> str:
    """The lines printed at the end, of a whole run and of those of its blocks that were trained just now."""
    final, counts = records[-1]["validation_loss"], model.count()
    lines = {
        "device": describe_device(),
        "parameters": f"{sum(counts.values()):,} ({', '.join(f'{name} {size:,}' for name, size in counts.items())})",
        "precision": f"{precision}, {describe_skips(records)}",
        "memory": describe_memory(blocks),
        "unigram baseline": f"{baseline:.3f} (perplexity {perplexity(baseline):.1f})",
        "validation loss": f"{final:.3f} (perplexity {perplexity(final):.1f})",
        "speed": f"{tokens_per_second(blocks):,.0f} tokens per second in training" if blocks else "no step was left to train",
        "time": f"{seconds:.1f} s in all, compilation and validation included",
        "written": ", ".join(str(path) for path in written),
    }
    return "\n".join(f"{name:<18}{value}" for name, value in lines.items())


def describe_skips(records: list[Record]) -> str:
    """`15 of 600 steps skipped, loss scale 32768 at the end`."""
    steps = [record for record in records if "loss" in record]
    skipped = sum(record["skipped"] for record in steps)
    return f"{skipped} of {len(steps)} steps skipped, loss scale {steps[-1]['loss_scale']:g} at the end"


def describe_memory(blocks: list[Block]) -> str:
    """`5.06 bytes per parameter, with the optimizer's state`."""
    measured = [block.memory for block in blocks if block.memory is not None]
    return f"{measured[-1]:.2f} bytes per parameter, with the optimizer's state" if measured else "no step was left to train"


def describe_device() -> str:
    """`cpu`, or `gpu (NVIDIA H200)`."""
    device = jax.devices()[0]
    return device.platform if device.device_kind == device.platform else f"{device.platform} ({device.device_kind})"


def perplexity(loss: float) -> float:
    """e to the loss, where that is a float."""
    return math.exp(min(loss, 700.0))


def tokens_per_second(blocks: list[Block]) -> float:
    """The rate of training, after the first step, which compiles, if there are others."""
    steps = [block for block in blocks if "loss" in block.records[0]]
    timed = steps[1:] or steps
    return BATCH * model.CONTEXT * sum(len(block.records) for block in timed) / sum(block.seconds for block in timed)
