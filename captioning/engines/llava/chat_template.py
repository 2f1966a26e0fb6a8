"""Check a checkpoint's chat template, a Jinja program that might never end.

Only what LLaVA-NeXT's templates use is allowed: loops over the messages and their parts,
conditions, and joining of strings. No string can be repeated or accumulated, so the time to render
is bounded.
"""

from __future__ import annotations

import re
from typing import Any

from lattec_jax.runtime.errors import EngineError
from lattec_jax.runtime.text import escape_unprintable, truncate

MAX_CHARS = 10_000
MAX_LOOPS = 2  # nested: over the messages, and over the parts of each
_FILTERS = {"first", "last", "length", "list", "lower", "rejectattr", "selectattr", "trim", "upper"}
_METHODS = {"capitalize", "endswith", "lower", "lstrip", "rstrip", "startswith", "strip", "title"}
_METHODS |= {"upper"}
_NODES = "Add And Assign Compare Concat CondExpr Const Filter For Getattr Getitem If Keyword Name "
_NODES += "Not Operand Or Output Slice Template TemplateData Test"
# Tags that transformers adds to Jinja, around the text of the assistant.
_GENERATION = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")


def check_chat_template(template: Any, where: str) -> None:
    """Raise EngineError if a template, or one of several by name, may run forever."""
    for text in template.values() if isinstance(template, dict) else [template]:
        reason = _refusal(text)
        if reason:
            raise EngineError(
                f"{where}: expected a chat template such as those of LLaVA-NeXT, which loop over "
                "messages and their parts, found "
                f"{escape_unprintable(truncate(reason, 300))}; choose a checkpoint such as "
                "llava-hf/llava-v1.6-mistral-7b-hf"
            )


def _refusal(text: Any) -> str:
    """Return why a template is refused, or ""."""
    import jinja2

    if not isinstance(text, str):
        return type(text).__name__
    if len(text) > MAX_CHARS:
        return f"more than {MAX_CHARS:,} characters"
    try:
        tree = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).parse(
            _GENERATION.sub("", text)
        )
        return _disallowed(tree, 0)
    except (jinja2.TemplateError, RecursionError, ValueError) as error:
        return str(error) or type(error).__name__


def _disallowed(node: Any, loops: int) -> str:
    """Return the first disallowed construct in a syntax tree, or ""."""
    kind = type(node).__name__
    if kind == "For":
        loops += 1
        if loops > MAX_LOOPS or node.recursive:
            return f"more than {MAX_LOOPS} nested loops"
    if kind == "Call":
        name, allowed = getattr(node.node, "attr", None), _METHODS
        if type(node.node).__name__ == "Name":
            name, allowed = node.node.name, {"raise_exception"}
        if name not in allowed:
            return f"a call of {name}"
    elif kind == "Filter":
        if node.name not in _FILTERS:
            return f"the filter {node.name}"
    elif kind not in _NODES.split():
        return f"{kind} in line {node.lineno}"
    # A variable assigned from a sum could double in length again and again.
    if kind == "Assign" and type(node.node).__name__ not in ("Name", "Getitem", "Getattr", "Const"):
        return f"a computed variable in line {node.lineno}"
    for child in node.iter_child_nodes():
        reason = _disallowed(child, loops)
        if reason:
            return reason
    return ""
