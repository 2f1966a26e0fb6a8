"""Check the content of JSON files against a declaration: types, ranges and known keys.

A declaration is a dataclass or a pydantic model. Declare records with `STRICT`, and ranges
and choices by `Annotated[int, Interval(ge=1)]` (annotated_types) and `Literal`. Importing this
module is cheap: pydantic is imported at the first check.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from lattec_jax.runtime.errors import UserError, short_repr
from lattec_jax.runtime.text import escape_unprintable

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

# Of a declaration, as `__pydantic_config__` (dataclass) or `model_config` (model).
STRICT: Any = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
# The same, where keys that are not declared are ignored.
STRICT_OPEN: Any = {**STRICT, "extra": "ignore"}

MAX_PROBLEMS = 5  # listed in a message
MAX_VALUE = 80  # characters of a value or a place in a message


def validate(
    schema: Any, content: Any, where: str, error: type[UserError], advice: str = ""
) -> Any:
    """Return JSON content as `schema` declares it.

    Args:
        schema: a dataclass, a pydantic model, or any type that pydantic knows.
        content: what JSON can hold. Arrays become tuples where the schema says so.
        where: the file, for messages.
        error: the class to raise.
        advice: what the user can do, without a period at its end.

    Raises:
        UserError: of the given class, naming the first problems with place, expected and found.
    """
    from pydantic import ValidationError

    try:
        return _adapter(schema).validate_json(json.dumps(content, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        message = f"{where}: expected Unicode text, found half of a surrogate pair"
        raise error(f"{message}; {advice}" if advice else message) from None
    except ValidationError as failed:
        details = failed.errors(include_url=False, include_context=False)
    lines = [_line(detail) for detail in details[:MAX_PROBLEMS]]
    if len(details) > MAX_PROBLEMS:
        lines.append(f"and {len(details) - MAX_PROBLEMS} more")
    message = f"{where}: {'; '.join(lines)}"
    raise error(f"{message}; {advice}" if advice else message)


@functools.cache
def _adapter(schema: Any) -> TypeAdapter:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _line(detail: ErrorDetails) -> str:
    """One problem: `item.path: expected …, found …`."""
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in detail["loc"])
    place = _cut(escape_unprintable(place.removeprefix("."))) or "content"
    if detail["type"] == "missing":
        return f"{place} is missing"
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place} is not known"
    message = detail["msg"].removeprefix("Value error, ")
    if message.startswith("Input should be "):
        message = f"expected {message.removeprefix('Input should be ')}"
    return f"{place}: {escape_unprintable(message)}, found {short_repr(detail['input'])}"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."
