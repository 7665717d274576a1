"""How the commands print."""

from typing import Any


def table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Lay rows out in columns under their heads."""
    lines = [heads, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
