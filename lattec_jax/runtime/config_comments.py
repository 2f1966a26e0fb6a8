"""Comments of the configuration files by key, for `--help`.

The comment of a key is read from the source of the file: the comment lines directly above an
assignment `config.section.key = ...`, and the trailing comment.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_FOR_TOOLS = ("fmt:", "noqa", "type:", "ruff:")


def comments(path: Path) -> dict[str, tuple[str, ...]]:
    """Map each key of an executed file, without "config.", to its comments, as they are assigned.

    Comments of the files in `configs` that this file imports come first. Sections, such as
    "dataset.tfds", are keys too.
    """
    found: dict[str, list[str]] = {}
    for file in _imported_config_files(path, []):
        for key, text in _of_file(file.read_text(encoding="utf-8")):
            known = found.setdefault(key, [])
            if text and text not in known:
                known.append(text)
    return {key: tuple(texts) for key, texts in found.items()}


def comment_of(key: str, found: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the comments of a key, or of its nearest enclosing section that has any."""
    while key and not found.get(key):
        key = key.rpartition(".")[0]
    return found.get(key, ())


def sort_by_assignment(keys: Iterable[str], found: Mapping[str, object]) -> list[str]:
    """Sort keys by their first assignment; keys without one come first."""
    numbers = {key: number for number, key in enumerate(found)}

    def position(key: str) -> int:
        while key and key not in numbers:
            key = key.rpartition(".")[0]
        return numbers.get(key, -1)

    return sorted(keys, key=position)


def _imported_config_files(path: Path, seen: list[Path]) -> list[Path]:
    """Return a file and the files of `configs` that it imports, imported files first."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = getattr(sys.modules.get(name), "__file__", None)
            if name.startswith("configs.") and file is not None and Path(file) not in seen:
                _imported_config_files(Path(file), seen)
    if path not in seen:
        seen.append(path)
    return seen


def _of_file(text: str) -> Iterator[tuple[str, str]]:
    """Yield key and comment ("": none) of each assignment in source order."""
    trailing, own_line = _lines(text)
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        nodes = list(ast.walk(function))
        names = {"config": ""}
        if function.name == "get_config":
            returned = [node.value for node in nodes if isinstance(node, ast.Return)]
            names |= {value.id: "" for value in returned if isinstance(value, ast.Name)}
        assignments = [node for node in nodes if isinstance(node, ast.Assign)]
        for node in sorted(assignments, key=lambda node: node.lineno):
            targets = [t for target in node.targets for t in getattr(target, "elts", [target])]
            comment = _comment(node, trailing, own_line)
            for key in (_key(target, names) for target in targets):
                if key:
                    yield key, comment
            if isinstance(targets[0], ast.Name) and (section := _key(node.value, names)):
                names[targets[0].id] = section  # `prompts = config.descriptions.prompts`
                yield section, comment


def _key(node: ast.expr, names: Mapping[str, str]) -> str:
    """Return the dotted key of an expression such as `config.train.epochs`, "" of any other."""
    name, _, attributes = ast.unparse(node).partition(".")
    if name not in names or not attributes.replace(".", "").isidentifier():
        return ""
    return f"{names[name]}.{attributes}".lstrip(".")


def _lines(text: str) -> tuple[dict[int, str], dict[int, str]]:
    """Map line numbers to comments: trailing comments, and comments on their own line."""
    trailing, own_line = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        comment = token.string.lstrip("#").strip()
        if token.type == tokenize.COMMENT and not comment.startswith(_FOR_TOOLS):
            line, column = token.start
            (trailing if token.line[:column].strip() else own_line)[line] = comment
    return trailing, own_line


def _comment(node: ast.Assign, trailing: Mapping[int, str], own_line: Mapping[int, str]) -> str:
    """Return the comment lines directly above an assignment and its trailing comments."""
    first = node.lineno
    while first - 1 in own_line:
        first -= 1
    # Comments inside a dictionary describe its entries.
    entries = any(isinstance(part, ast.Dict) for part in ast.walk(node.value))
    last = node.lineno if entries else node.end_lineno or node.lineno
    both = {**own_line, **trailing}
    return " ".join(both[line] for line in range(first, last + 1) if line in both)
