"""Showing how far it is: a bar on a terminal, lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self


class Progress:
    """A count of the tables (or whatever the unit is) that are done, and what is being measured.

    Use it as a context; call `begin` before each and `tick` as often as there is something new.
    """

    def __init__(self, total: int, unit: str = "table") -> None:
        self.total, self.done, self.began = total, 0, time.perf_counter()
        self.bar: Any = None
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit=unit, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()

    def begin(self, what: str) -> None:
        """Say what comes next."""
        self.done += 1
        if self.bar is not None:
            self.bar.set_postfix_str(what)
        else:
            print(f"[{self.done}/{self.total}] {time.perf_counter() - self.began:6.1f} s  {what}", flush=True)

    def tick(self) -> None:
        """Keep the clock of the bar going."""
        if self.bar is not None:
            self.bar.refresh()

    def end(self) -> None:
        """Count what was begun as done."""
        if self.bar is not None:
            self.bar.update()
