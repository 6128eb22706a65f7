"""A table that prints itself."""

from typing import Any, NamedTuple


class Table(NamedTuple):
    """Rows of values under column names; `str` aligns them.

    Attributes:
        columns: the column names.
        rows: one tuple of values per row; None is a value that is not known.
        footer: lines below the table.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    footer: tuple[str, ...] = ()

    def __str__(self) -> str:
        cells = [self.columns, *([_cell(value) for value in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        rights = [_numeric([row[i] for row in self.rows]) for i in range(len(widths))]
        lines = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, rights, strict=True)
            )
            for row in cells
        ]
        return "\n".join(line.rstrip() for line in (*lines, *self.footer))

    __repr__ = __str__


def _numeric(values: list[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) for value in known)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
