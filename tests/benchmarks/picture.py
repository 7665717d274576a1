"""Bars for the pages: SVG by hand, for want of anything to decide."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

ROW, LEFT, WIDEST = 34, 290, 420
OURS, OTHERS, INK = "#635bff", "#b8bcc8", "#1a1f36"


def draw(
    path: Path, charts: dict[str, dict[str, float]], is_ours: Callable[[str], bool], unit: str
) -> None:
    """Draw charts below each other: a title, then a bar for each name, each chart to its scale."""
    rows = sum(len(chart) + 1 for chart in charts.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="820" height="{ROW * rows + 10}"'
        ' font-family="sans-serif" font-size="14">',
        f'<rect width="820" height="{ROW * rows + 10}" fill="#ffffff"/>',
    ]
    top = 8
    for title, chart in charts.items():
        parts.append(_text(LEFT, top, f"<tspan font-weight='bold'>{escape(title)}</tspan>"))
        top += ROW
        for name, value in chart.items():
            width = round(WIDEST * value / max(chart.values()))
            colour = OURS if is_ours(name) else OTHERS
            parts += [
                _text(LEFT - 10, top, escape(name), "end"),
                f'<rect x="{LEFT}" y="{top}" width="{width}" height="24" fill="{colour}"/>',
                _text(LEFT + width + 8, top, f"{value:,.0f}{escape(unit)}"),
            ]
            top += ROW
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def _text(x: int, top: int, content: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{top + 17}" text-anchor="{anchor}" fill="{INK}">{content}</text>'
