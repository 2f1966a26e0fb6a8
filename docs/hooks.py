"""What MkDocs builds from the code and from files outside of docs/.

- `benchmarks/README.md`, `CHANGELOG.md`, the notebook and others become pages (`INCLUDED`), with
  their images.
- `commands.md` gets the `--help` of every command, `configuration.md` every key, and
  `python_api.md` the public names of `lattec_jax`: none of them can disagree with the code.
- The comments that say how tests run a block (docs/documentation.md) are removed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import lattec_jax
from lattec_jax.commands import COMMANDS, module_file, summary
from lattec_jax.runtime import config_reference

ROOT = Path(__file__).resolve().parent.parent
INCLUDED = {  # pages from files outside of docs/
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "notebook.md": "docs/notebooks/adapt_your_images.ipynb",
    "security.md": "SECURITY.md",
}
_MARKER = re.compile(
    r"^<!-- (?:not run|run with|fails with|before):\s.*?-->\n", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the included files, and the images that they show."""
    for page, source in INCLUDED.items():
        path = ROOT / source
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = _notebook(text)
        files.append(File.generated(config, page, content=text))
        for image, _, target, _ in _LINK.findall(text):
            if image and (path.parent / target).exists():
                name = posixpath.basename(target)
                files.append(File.generated(config, name, abs_src_path=str(path.parent / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Complete a generated page, and make links to other files of the repository work."""
    name = page.file.src_uri
    if name in _GENERATED:
        markdown = _GENERATED[name](markdown)
    folder = posixpath.dirname(INCLUDED.get(name, f"docs/{name}"))
    markdown = _MARKER.sub("", markdown)
    return _LINK.sub(lambda match: _relink(match, folder), markdown)


def _relink(match: re.Match[str], folder: str) -> str:
    """Return a link as the site has it; without a page for its target only the text of the link.

    Args:
        match: of `_LINK`.
        folder: of the Markdown file, relative to the repository.
    """
    image, text, target, anchor = match.groups()
    if re.match(r"[a-z]+:", target):
        return match[0]
    path = posixpath.normpath(posixpath.join(folder, target))
    pages = {source: page for page, source in INCLUDED.items() if (ROOT / source).exists()}
    if path in pages:
        return f"{image}[{text}]({pages[path]}{anchor or ''})"
    if path.startswith("docs/"):
        return f"{image}[{text}]({path.removeprefix('docs/')}{anchor or ''})"
    if image:
        return f"![{text}]({posixpath.basename(path)})"
    return text if (ROOT / path).exists() else match[0]


def _notebook(text: str) -> str:
    """Return a notebook as Markdown: its cells, and the text that they print."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            printed = output.get("text") or output.get("data", {}).get("text/plain", "")
            parts.append(f"```text\n{''.join(printed).rstrip()}\n```")
    return "\n\n".join(parts)


def _with_commands(markdown: str) -> str:
    """Add a section for each command: its `--help`."""
    sections, package = [markdown], ""
    for name, module in COMMANDS.items():
        if package != module.partition(".")[0]:
            package = module.partition(".")[0]
            sections.append(f"## {package}")
        sections += [f"### {name}", summary(module)]
        sections.append(f'```text title="python -m {module} --help"\n{_help(module)}\n```')
    return "\n\n".join(sections)


def _help(module: str) -> str:
    entry = f"{module}.__main__" if module_file(module).name == "__main__.py" else module
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module(entry).main([module, "--help"])
    return printed.getvalue().strip()


def _with_keys(_: str) -> str:
    """Return the reference of the configuration with a heading for each section."""
    lines = config_reference.reference().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
    head, table, rows = lines[: first - 2], lines[first - 2 : first], lines[first:]
    sections: dict[str, list[str]] = {}
    for row in rows:
        section, dot, _ = row.split("`")[1].partition(".")
        sections.setdefault(section if dot else "general", []).append(row)
    for section, group in sections.items():
        head += [f"## {section}", "", *table, *group, ""]
    return "\n".join(head)


def _with_api(markdown: str) -> str:
    """Name the public objects of the package where the page says `<!-- public -->`."""
    names = [name for name in lattec_jax.__all__ if not name.startswith("__")]
    names.sort(key=lambda name: name[0].isupper())  # functions first
    return markdown.replace(
        "<!-- public -->", "\n\n".join(f"::: lattec_jax.{name}" for name in names)
    )


_GENERATED: dict[str, Any] = {
    "commands.md": _with_commands,
    "configuration.md": _with_keys,
    "python_api.md": _with_api,
}
