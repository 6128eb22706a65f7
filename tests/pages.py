"""The Python blocks of a page, what they print, and what the page says that they print."""

import contextlib
import io
import re
import textwrap
from collections.abc import Iterator
from decimal import Decimal

FENCE = re.compile(r"^( *)(`{3,})(.*?)\n(.*?)^\1\2$", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(r"\s*```text\n(.*?)```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")


def python_blocks(text: str) -> Iterator[re.Match]:
    """The fences of the blocks that run."""
    return (block for block in FENCE.finditer(text) if block.group(3) == "python")


def run(text: str, name: str) -> Iterator[tuple[re.Match, str]]:
    """Run the blocks of a page one after the other: each with what it printed."""
    namespace = {"__name__": name}
    for block in python_blocks(text):
        lines_before = "\n" * text.count("\n", 0, block.start(4))  # so that a traceback names the right one
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(lines_before + textwrap.dedent(block.group(4)), name, "exec"), namespace)
        yield block, "\n".join(line.rstrip() for line in printed.getvalue().splitlines())


def shown_below(text: str, block: re.Match) -> re.Match | None:
    """The block of text right below a block of code."""
    return SHOWN.match(text, block.end())


def alike(printed: str, shown: str) -> bool:
    """The same words, and numbers that agree to two digits: platforms round differently. Counts are the same."""
    return NUMBER.sub("#", printed).split() == NUMBER.sub("#", shown).split() and all(
        map(close, NUMBER.findall(printed), NUMBER.findall(shown))
    )


def close(a: str, b: str) -> bool:
    x, y = Decimal(a.replace(",", "")), Decimal(b.replace(",", ""))
    if a.lstrip("-").replace(",", "").isdigit() and b.lstrip("-").replace(",", "").isdigit():
        return x == y
    last_digit = max(Decimal((0, (1,), min(z.as_tuple().exponent, 0))) for z in (x, y))
    return abs(x - y) <= max(abs(y) / 50, min(last_digit, abs(y) / 10))
