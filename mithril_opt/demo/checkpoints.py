"""Checkpoints of a run: what a process that is killed at any moment leaves to the next."""

import os
import time
import zlib
from pathlib import Path
from typing import Any

KEPT = 2


class Checkpoints:
    """The last checkpoints of a run, in a folder. Orbax renames each when it is complete, so it is there whole or not at all.

    Beside the arrays a checkpoint holds whose it is, how far the metrics were written, and how long the run had taken. The
    order of the data needs no place in it: the batch of a step is a function of the seed and the step.
    """

    def __init__(self, folder: Path, every: int, settings: dict[str, Any], metrics: Path) -> None:
        """Open a folder, made if need be.

        Args:
            folder: where the checkpoints are.
            every: save after every so many steps.
            settings: what makes the run what it is, as JSON knows it; that of the checkpoints must be equal.
            metrics: the file of metrics, of which the lines after a checkpoint are cut off when the run goes on from there.

        Raises:
            OSError: the folder cannot be made, or not be written to.
        """
        from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions

        folder.mkdir(parents=True, exist_ok=True)
        options = CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True)
        self.manager = CheckpointManager(folder.absolute(), options=options)
        self.every, self.settings, self.metrics = every, settings, metrics
        self.step: int = self.manager.latest_step() or 0
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the run has taken, what was killed and done again not counted."""
        return time.perf_counter() - self.began

    def resume(self) -> None:
        """Go back to the last checkpoint; a ValueError if it is another run's."""
        from orbax.checkpoint.args import Composite, JsonRestore

        run = self.manager.restore(self.step, args=Composite(run=JsonRestore()))["run"]
        if changed := [name for name, value in self.settings.items() if run["settings"].get(name) != value]:
            found = ", ".join(f"--{name} {run['settings'].get(name)}" for name in changed)
            raise ValueError(f"the checkpoints are those of a run with {found}")
        go_back(self.metrics, run["metrics"])
        self.began -= run["seconds"]

    def restore(self, tree: Any) -> Any:
        """What was saved last, in place of the arrays of `tree`."""
        from orbax.checkpoint.args import Composite, StandardRestore

        return self.manager.restore(self.step, args=Composite(arrays=StandardRestore(tree)))["arrays"]

    def save(self, step: int, tree: Any) -> None:
        """Save `tree` as it is after `step` steps, whose metrics have been written. Orbax writes while training goes on."""
        from orbax.checkpoint.args import Composite, JsonSave, StandardSave

        run = {"settings": self.settings, "metrics": mark(self.metrics), "seconds": self.seconds}
        self.manager.save(step, args=Composite(arrays=StandardSave(tree), run=JsonSave(run)))

    def close(self) -> None:
        """Wait until all is written."""
        self.manager.close()


def mark(file: Path) -> dict[str, int]:
    """How much a file holds, and its checksum."""
    content = file.read_bytes()
    return {"bytes": len(content), "crc32": zlib.crc32(content)}


def go_back(file: Path, to: dict[str, int]) -> None:
    """Cut off what was written after `mark`; a ValueError if the file is not the one that was marked."""
    content = file.read_bytes() if file.exists() else b""
    if len(content) < to["bytes"] or zlib.crc32(content[: to["bytes"]]) != to["crc32"]:
        raise ValueError(f"{str(file)!r} does not hold the metrics of the run up to its last checkpoint")
    os.truncate(file, to["bytes"])
