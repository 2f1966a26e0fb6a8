"""Line charts and heat maps as inline SVG. Colors come from the style sheet of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from lattec_jax.reporting.markup import escape

WIDTH, HEIGHT = 340, 200  # of a line chart, in units of its viewBox
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 26
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # lines must be distinguishable without color
UNKNOWN = "–"
MAX_LABELED_CLASSES = 20  # larger heat maps have no text in the cells
Points = Sequence[tuple[float, float]]


def is_finite(value: float | None) -> TypeGuard[float]:
    """Return whether a value is known and finite."""
    return value is not None and math.isfinite(value)


def format_number(value: float | None) -> str:
    """Return a value with three significant digits."""
    if not is_finite(value):
        return UNKNOWN
    if value == 0 or 0.001 <= abs(value) < 100_000:
        digits = 2 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:z,.{min(max(digits, 0), 4)}f}"
    return f"{value:.2g}"


def line_chart(title: str, lines: Mapping[str, Points], note: str = "") -> str:
    """Return a figure with one line per name; the legend gives its first and last value as text.

    Args:
        lines: name -> points (step, finite value); at least one point in total.
        note: one sentence below the legend.
    """
    lines = {name: points for name, points in lines.items() if points}
    all_points = [point for points in lines.values() for point in points]
    x0, x1 = _range([x for x, _ in all_points])
    y0, y1 = _range([y for _, y in all_points])

    def to_pixels(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        up = (point[1] - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - up, 1)

    drawing, legend = [], []
    for index, (name, points) in enumerate(lines.items()):
        pixels = [to_pixels(point) for point in points]
        coordinates = " ".join(f"{x},{y}" for x, y in pixels)
        dash = DASHES[index % len(DASHES)]
        style = f'class="line c{index % 4}" stroke-dasharray="{dash or "none"}"'
        drawing.append(f'<polyline points="{coordinates}" {style}/>')
        if len(points) == 1:
            drawing.append(f'<circle cx="{pixels[0][0]}" cy="{pixels[0][1]}" r="3" class="dot"/>')
        first, last = format_number(points[0][1]), format_number(points[-1][1])
        key = f'<svg class="key" aria-hidden="true" viewBox="0 0 24 6"><path d="M0 3H24" {style}/>'
        key += "</svg>"
        legend.append(f"<li>{key}{escape(name)}: {first} → {last}</li>")
    axes = []
    for y in (y0, (y0 + y1) / 2, y1):
        height = to_pixels((x0, y))[1]
        axes.append(f'<path d="M{LEFT} {height}H{WIDTH - RIGHT}" class="grid"/>')
        axes.append(
            f'<text x="{LEFT - 5}" y="{height + 4}" text-anchor="end">{format_number(y)}</text>'
        )
    for x, anchor in ((x0, "start"), (x1, "end")):
        position = to_pixels((x, y0))[0]
        text = f"step {x:g}" if anchor == "start" else f"{x:g}"
        axes.append(f'<text x="{position}" y="{HEIGHT - 8}" text-anchor="{anchor}">{text}</text>')
    label = escape(f"{title}, steps {x0:g} to {x1:g}")
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3>'
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"{''.join(axes + drawing)}</svg>"
        f'<figcaption><ul class="legend">{"".join(legend)}</ul>{escape(note)}</figcaption></figure>'
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of an axis, which is not empty even if all values are equal."""
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    return low, high


def heat_map(
    title: str,
    cells: Mapping[tuple[int, int], tuple[float, str]],
    names: Sequence[str],
    axes: tuple[str, str],
) -> str:
    """Return a square figure with one cell per pair of classes, labeled if there are few classes.

    Args:
        cells: (row, column) -> opacity from 0 to 1 and text of the cell; other cells stay empty.
        names: of the classes.
        axes: names of the rows and of the columns.
    """
    count = len(names)
    labeled = count <= MAX_LABELED_CLASSES
    side = 28 if labeled else max(6, 560 // count)
    margin = 8 * min(max(map(len, names)), 16) if labeled else 18
    size = margin + side * count
    parts = []
    for (row, column), (opacity, text) in sorted(cells.items()):
        x, y = margin + side * column, margin + side * row
        hint = escape(f"{names[row]} → {names[column]}: {text}")
        parts.append(
            f'<rect x="{x}" y="{y}" width="{side}" height="{side}" class="cell" '
            f'fill-opacity="{opacity:.2f}"><title>{hint}</title></rect>'
        )
        if labeled:
            kind = "dark" if opacity > 0.55 else "pale"
            center = f'x="{x + side / 2:g}" y="{y + side / 2 + 3.5:g}"'
            parts.append(f'<text {center} class="in {kind}">{escape(text)}</text>')
    parts.append(
        f'<rect x="{margin}" y="{margin}" width="{side * count}" height="{side * count}" '
        'class="frame"/>'
    )
    if labeled:
        for index, name in enumerate(names):
            middle = margin + side * (index + 0.5)
            short = escape(name if len(name) <= 16 else name[:15] + "…")
            parts.append(f'<text x="{margin - 4}" y="{middle + 4:g}" class="row">{short}</text>')
            rotated = f'transform="translate({middle + 4:g} {margin - 4}) rotate(-90)"'
            parts.append(f"<text {rotated}>{short}</text>")
    rows, columns = axes
    label = escape(f"{title}: {rows} down, {columns} across")
    return (
        f'<figure class="map"><h3>{escape(title)}</h3>'
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {size} {size}" '
        f'style="max-width:{size}px">{"".join(parts)}</svg>'
        f"<figcaption>Down: {escape(rows)}. Across: {escape(columns)}.</figcaption></figure>"
    )
