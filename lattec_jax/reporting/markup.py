"""Text from files, as HTML."""

from __future__ import annotations

import html

from lattec_jax.runtime.text import sanitize


def escape(text: str) -> str:
    """Return text for element content and quoted attributes: escaped, without control characters
    and lone surrogates."""
    return html.escape(sanitize(text), quote=True)
