"""Validate the content of JSON files against a schema: types, ranges and known keys.

A schema is a dataclass or a pydantic model. Declare records with `STRICT`, and ranges and choices
by `Annotated[int, Interval(ge=1)]` (annotated_types) and `Literal`. Importing this module is
cheap: pydantic is imported at the first validation.
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

# The `__pydantic_config__` of a dataclass or `model_config` of a model.
STRICT: Any = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
# The same, but unknown keys are ignored.
STRICT_OPEN: Any = {**STRICT, "extra": "ignore"}

MAX_PROBLEMS = 5  # listed in a message
MAX_LOCATION_CHARS = 80  # characters of a location in a message


def validate(
    schema: Any, content: Any, where: str, error: type[UserError], advice: str = ""
) -> Any:
    """Return JSON content as an instance of `schema`.

    Args:
        schema: a dataclass, a pydantic model, or any type that pydantic knows.
        content: JSON content. Arrays become tuples where the schema declares tuples.
        where: the file, for messages.
        error: the class to raise. The message lists the first problems, each with its location,
            what was expected and what was found.
        advice: what the user can do, without a final period.
    """
    from pydantic import ValidationError

    try:
        return _adapter(schema).validate_json(json.dumps(content, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        problems = ["expected Unicode text, found half of a surrogate pair"]
    except ValidationError as failed:
        details = failed.errors(include_url=False, include_context=False)
        problems = [_line(detail) for detail in details[:MAX_PROBLEMS]]
        if len(details) > MAX_PROBLEMS:
            problems.append(f"and {len(details) - MAX_PROBLEMS} more")
    message = f"{where}: {'; '.join(problems)}"
    raise error(f"{message}; {advice}" if advice else message)


@functools.cache
def _adapter(schema: Any) -> TypeAdapter:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _line(detail: ErrorDetails) -> str:
    """Return one problem: `item.path: expected …, found …`."""
    location = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in detail["loc"])
    location = escape_unprintable(location.removeprefix(".")) or "content"
    if len(location) > MAX_LOCATION_CHARS:
        location = f"{location[: MAX_LOCATION_CHARS - 3]}..."
    if detail["type"] == "missing":
        return f"{location} is missing"
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{location} is not known"
    message = detail["msg"].removeprefix("Value error, ")
    if message.startswith("Input should be "):
        message = f"expected {message.removeprefix('Input should be ')}"
    return f"{location}: {escape_unprintable(message)}, found {short_repr(detail['input'])}"
