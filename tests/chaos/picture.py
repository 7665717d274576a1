"""A run of the storm as a picture: SVG, written by hand."""

from __future__ import annotations

WIDTH, HEIGHT, LEFT, TOP, LANE = 1000, 360, 70, 40, 14
COLOURS = {
    "SIGKILL": "#c0392b",
    "SIGTERM": "#e67e22",
    "SIGSTOP": "#8e44ad",
    "network": "#2980b9",
    "api": "#16a085",
    "deploy": "#000000",
}
LINES = {"accepted": "#2c3e50", "completed": "#27ae60", "pending": "#f39c12"}


def draw(samples: list[tuple[float, int, int, int]], faults: list[tuple[float, str]]) -> str:
    """Return accepted, completed and pending over time, above a lane of ticks for each fault.

    Args:
        samples: seconds, accepted, completed, pending (-1 while Redis does not answer).
        faults: seconds, and what was struck; its first word is the kind.
    """
    seconds = max((sample[0] for sample in samples), default=1) or 1
    most = max((max(sample[1:]) for sample in samples), default=1) or 1

    def x(moment: float) -> float:
        return LEFT + moment / seconds * (WIDTH - LEFT - 20)

    def y(count: float) -> float:
        return TOP + HEIGHT - max(0, count) / most * HEIGHT

    bottom = TOP + HEIGHT + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}"'
        f' height="{bottom + LANE * len(COLOURS) + 20}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for step in range(5):
        count, moment = most * step / 4, seconds * step / 4
        parts += [
            f'<path d="M{LEFT} {y(count):.1f}H{WIDTH - 20}" stroke="#ddd"/>',
            f'<text x="{LEFT - 6}" y="{y(count) + 4:.1f}" text-anchor="end">{count:,.0f}</text>',
            f'<text x="{x(moment):.1f}" y="{TOP + HEIGHT + 18}">{moment:.0f} s</text>',
        ]
    for column, (name, colour) in enumerate(LINES.items(), 1):
        points = " ".join(f"{x(sample[0]):.1f},{y(sample[column]):.1f}" for sample in samples)
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
            f'<text x="{LEFT + 100 * column - 90}" y="{TOP - 14}" fill="{colour}">{name}</text>',
        ]
    for lane, (kind, colour) in enumerate(COLOURS.items()):
        level = bottom + lane * LANE
        parts.append(f'<text x="{LEFT - 6}" y="{level + 9}" text-anchor="end">{kind}</text>')
        parts += [
            f'<path d="M{x(moment):.1f} {level}v{LANE - 3}" stroke="{colour}" stroke-width="2">'
            f"<title>{moment} s: {what}</title></path>"
            for moment, what in faults
            if what.partition(" ")[0] == kind
        ]
    return "\n".join([*parts, "</svg>\n"])
