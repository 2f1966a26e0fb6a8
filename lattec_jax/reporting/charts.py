"""Curves and heat maps as inline SVG. Colors come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lattec_jax.reporting.markup import escape

WIDTH, HEIGHT = 340, 200  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 26
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # lines differ by more than their color
UNKNOWN = "–"
Points = Sequence[tuple[float, float]]


def is_finite(value: float | None) -> bool:
    """Whether a value is known and finite."""
    return value is not None and math.isfinite(value)


def number(value: float | None) -> str:
    """A figure for reading: three digits that count."""
    if not is_finite(value):
        return UNKNOWN
    if value == 0 or 0.001 <= abs(value) < 100_000:
        digits = 2 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:,.{min(max(digits, 0), 4)}f}"
    return f"{value:.2g}"


def curves(title: str, lines: Mapping[str, Points], note: str = "") -> str:
    """A figure with one line per name over the steps, and its first and last values in words.

    Args:
        title: of the figure.
        lines: name -> (step, value), at least one point in all; values are finite.
        note: what the figure shows, one sentence.
    """
    lines = {name: points for name, points in lines.items() if points}
    everything = [point for points in lines.values() for point in points]
    x0, x1 = _range([x for x, _ in everything])
    y0, y1 = _range([y for _, y in everything])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        up = (point[1] - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - up, 1)

    drawn, legend = [], []
    for index, (name, points) in enumerate(lines.items()):
        placed = [place(point) for point in points]
        where = " ".join(f"{x},{y}" for x, y in placed)
        dash = DASHES[index % len(DASHES)]
        style = f'class="line c{index % 4}" stroke-dasharray="{dash or "none"}"'
        drawn.append(f'<polyline points="{where}" {style}/>')
        if len(points) == 1:
            drawn.append(f'<circle cx="{placed[0][0]}" cy="{placed[0][1]}" r="3" class="dot"/>')
        first, last = number(points[0][1]), number(points[-1][1])
        key = f'<svg class="key" aria-hidden="true" viewBox="0 0 24 6"><path d="M0 3H24" {style}/>'
        key += "</svg>"
        legend.append(f"<li>{key}{escape(name)}: {first} → {last}</li>")
    axes = []
    for y in (y0, (y0 + y1) / 2, y1):
        height = place((x0, y))[1]
        axes.append(f'<path d="M{LEFT} {height}H{WIDTH - RIGHT}" class="grid"/>')
        axes.append(f'<text x="{LEFT - 5}" y="{height + 4}" text-anchor="end">{number(y)}</text>')
    for x, anchor in ((x0, "start"), (x1, "end")):
        where = place((x, y0))[0]
        label = f"step {x:g}" if anchor == "start" else f"{x:g}"
        axes.append(f'<text x="{where}" y="{HEIGHT - 8}" text-anchor="{anchor}">{label}</text>')
    spoken = escape(f"{title}, over the steps {x0:g} to {x1:g}")
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3>'
        f'<svg role="img" aria-label="{spoken}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"{''.join(axes + drawn)}</svg>"
        f'<figcaption><ul class="legend">{"".join(legend)}</ul>{escape(note)}</figcaption></figure>'
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The least and largest value, apart even where they are equal."""
    least, largest = min(values), max(values)
    if least == largest:
        margin = abs(least) * 0.1 or 1.0
        return least - margin, largest + margin
    return least, largest


def heat_map(
    title: str,
    cells: Mapping[tuple[int, int], tuple[float, str]],
    names: Sequence[str],
    axes: tuple[str, str],
) -> str:
    """A square figure with one cell per pair of classes; of few classes with names and metrics.

    Args:
        title: of the figure.
        cells: (row, column) -> darkness from 0 to 1 and the text of the cell; pairs that are
            not there stay empty.
        names: of the classes.
        axes: what the rows and the columns are.
    """
    count = len(names)
    few = count <= 20
    side = 28 if few else max(6, 560 // count)
    margin = 8 * min(max(map(len, names)), 16) if few else 18
    size = margin + side * count
    parts = []
    for (row, column), (dark, text) in sorted(cells.items()):
        x, y = margin + side * column, margin + side * row
        hint = escape(f"{names[row]} → {names[column]}: {text}")
        parts.append(
            f'<rect x="{x}" y="{y}" width="{side}" height="{side}" class="cell" '
            f'fill-opacity="{dark:.2f}"><title>{hint}</title></rect>'
        )
        if few:
            kind = "dark" if dark > 0.55 else "pale"
            where = f'x="{x + side / 2:g}" y="{y + side / 2 + 3.5:g}"'
            parts.append(f'<text {where} class="in {kind}">{escape(text)}</text>')
    parts.append(
        f'<rect x="{margin}" y="{margin}" width="{side * count}" height="{side * count}" '
        'class="frame"/>'
    )
    if few:
        for index, name in enumerate(names):
            middle = margin + side * (index + 0.5)
            short = escape(name if len(name) <= 16 else name[:15] + "…")
            parts.append(f'<text x="{margin - 4}" y="{middle + 4:g}" class="row">{short}</text>')
            turned = f'transform="translate({middle + 4:g} {margin - 4}) rotate(-90)"'
            parts.append(f"<text {turned}>{short}</text>")
    rows, columns = axes
    spoken = escape(f"{title}: {rows} down, {columns} across")
    return (
        f'<figure class="map"><h3>{escape(title)}</h3>'
        f'<svg role="img" aria-label="{spoken}" viewBox="0 0 {size} {size}" '
        f'style="max-width:{size}px">{"".join(parts)}</svg>'
        f"<figcaption>Down: {escape(rows)}. Across: {escape(columns)}.</figcaption></figure>"
    )
