"""HTML helpers: escaping of text from files, and tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from lattec_jax.runtime.text import sanitize


def escape(text: str) -> str:
    """Return text for element content and quoted attributes, escaped and sanitized."""
    return html.escape(sanitize(text), quote=True)


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    text_columns: Sequence[int] = (),
) -> str:
    """Return a table that scrolls horizontally on narrow screens. Cells are escaped here.

    Args:
        header: names of the columns; the cells of the first column are row headers.
        text_columns: columns with left-aligned text, in addition to the first.
    """
    kinds = [' class="text"' if i in text_columns else "" for i in range(len(header))]
    pairs = list(zip(header, kinds, strict=True))
    heads = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in pairs)
    body = []
    for row in rows:
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        for cell, kind in zip(row[1:], kinds[1:], strict=True):
            cells.append(f"<td{kind}>{escape(cell)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" '
        f'tabindex="0"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
