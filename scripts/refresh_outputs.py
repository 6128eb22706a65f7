"""Write below each block of the documentation what it prints: `python -m scripts.refresh_outputs docs/quickstart.md …`.

A block of text below is replaced if what it shows is no longer what is printed, up to rounding; where there is none and
something is printed, it is put there. The tests compare the two.
"""

import os
import sys
import tempfile
from pathlib import Path

from tests.pages import alike, run, shown_below

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # as in the tests, for docs/devices.md


def refreshed(text: str, name: str) -> str:
    """The page with the outputs of its blocks."""
    parts, last = [], 0
    for block, printed in run(text, name):
        below = shown_below(text, block)
        if (below and alike(printed, below.group(1))) or not printed:
            continue
        parts += [text[last : block.end()], f"\n\n```text\n{printed}\n```"]
        last = below.end() if below else block.end()
    return "".join([*parts, text[last:]])


def main(pages: list[str]) -> None:
    paths = [Path(page).absolute() for page in pages]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # some of them write files
        for path in paths:
            path.write_text(refreshed(path.read_text(), path.name))


if __name__ == "__main__":
    main(sys.argv[1:])
