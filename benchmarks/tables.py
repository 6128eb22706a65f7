"""Results as tables: Markdown to read, JSON to compute with."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclasses.dataclass
class Table:
    """The candidates of one kind of work on one workload.

    Attributes:
        work: the name that `--work` knows it by.
        workload: the workload's name.
        title: what was measured, in words.
        rows: a dictionary per candidate; its keys are those of `COLUMNS`, and more that only the JSON shows.
    """

    work: str
    workload: str
    title: str
    rows: list[Row]


def fixed(digits: int) -> Callable[[float], str]:
    """A format with so many digits behind the point."""
    return lambda value: f"{value:,.{digits}f}"


def significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def numbered(kinds: dict[str, int]) -> str:
    """How many there are of each kind."""
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "none"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "program": ("program", str),
    "check": ("check", str),
    "layout": ("layout", str),
    "rule": ("rule", str),
    "stored_as": ("stored", str),
    "devices": ("devices", str),
    "size": ("n", lambda value: f"{value:,.0f}"),
    "work": ("work", str),
    "workload": ("workload", str),
    "candidate": ("", str),
    "ms": ("ms", significant),
    "ratio": ("time / peer's", fixed(2)),
    "stored": ("B/param of parameters and state", fixed(2)),
    "held_out": ("held-out loss", fixed(3)),
    "gap": ("− float32's, mean", "{:+.3f}".format),
    "gaps": ("each seed", lambda gaps: ", ".join(f"{gap:+.3f}" for gap in gaps)),
    "train_loss": ("training loss", "{:.2e}".format),
    "bytes": ("B/param", fixed(1)),
    "peer_bytes": ("peer's B/param", fixed(1)),
    "other": ("other calls, B/param", fixed(1)),
    "peer_other": ("peer's other calls, B/param", fixed(1)),
    "temp": ("temporaries, B/param", fixed(2)),
    "peer_temp": ("peer's temporaries, B/param", fixed(2)),
    "launches": ("launches", "{:,}".format),
    "peer_launches": ("peer's launches", "{:,}".format),
    "update_collectives": ("of the update", numbered),
    "step_collectives": ("of a whole step", numbered),
    "memory": ("memory, MB", significant),
    "temp_mb": ("of it temporaries, MB", significant),
    "roundings": ("roundings in the verdict", str),
    "bandwidth": ("floor / copy bandwidth", lambda value: f"{value:.0%}"),
    "trace_s": ("trace, s", fixed(2)),
    "lower_s": ("lower, s", fixed(2)),
    "prepare_s": ("trace + lower, s", fixed(2)),
    "compile_s": ("compile, s", fixed(2)),
    "prepare_ratio": ("(trace + lower) / peer's", fixed(2)),
    "compile_ratio": ("compile / peer's", fixed(2)),
    "loop_ns": ("in a compiled loop, ns", significant),
    "eager_us": ("called from Python, µs", significant),
    "eager_ratio": ("from Python / peer's", fixed(2)),
}


def to_markdown(machine: dict[str, str], tables: list[Table]) -> str:
    """Everything as a page."""
    facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    return "\n\n".join([facts, *map(table_to_markdown, tables)]) + "\n"


def table_to_markdown(table: Table) -> str:
    """One table under its title."""
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in table.rows)]
    header = [COLUMNS[name][0] for name in shown]
    body = [[cell(row.get(name), name) for name in shown] for row in table.rows]
    rule = ["---", *["---:"] * (len(shown) - 1)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, rule, *body)]
    return "\n".join([f"**{table.title}**", "", *lines])


def cell(value: Any, name: str) -> str:
    """One value as its column shows it."""
    return "" if value is None else COLUMNS[name][1](value)


def to_json(machine: dict[str, str], tables: list[Table]) -> str:
    """Everything, unrounded, the samples included."""
    return json.dumps({"machine": machine, "tables": [dataclasses.asdict(table) for table in tables]}, indent=1)


def write(folder: Path, name: str, machine: dict[str, str], tables: list[Table]) -> list[Path]:
    """Write `name.json` and `name.md` into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{name}.json": to_json(machine, tables), folder / f"{name}.md": to_markdown(machine, tables)}
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)
