"""The page from the files of a work directory. Imports no JAX."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from lattec_jax.errors import ConfigError, DataError, shortened
from lattec_jax.files import write_whole
from lattec_jax.report import sections
from lattec_jax.report.sections import Run
from lattec_jax.workdir import CONFIG, METRICS, REPORT, REPORT_DATA, RESULTS

# Files of which a page cannot do without these keys.
KEYS = {
    RESULTS: ("method", "dataset", "class_names", "health", "zero_shot", "adapted", "label_free"),
    REPORT_DATA: ("prototypes", "confusion", "changed", "examples"),
}
TEMPLATE = Path(__file__).with_name("page.html")


def write(workdir: Path) -> Path:
    """Write `report.html` into the work directory of a finished run and return its path.

    Raises:
        ConfigError: the run has not finished.
        DataError: a file of the run is damaged.
    """
    path = workdir / REPORT
    write_whole(path, render(read(workdir)))
    return path


def read(workdir: Path) -> Run:
    """What the work directory holds of a run. Without `report_data.json`, which only the end of a
    training writes, the page has no pictures.

    Raises:
        ConfigError: the run has not finished.
        DataError: a file of the run is damaged.
    """
    if not (workdir / RESULTS).exists():
        raise ConfigError(
            f"no {RESULTS} in {workdir}; expected the work directory of a finished run. Repeat its "
            "command of python -m lattec_jax.train to finish it"
        )
    data = workdir / REPORT_DATA
    metrics = workdir / METRICS
    return Run(
        config=_json(workdir / CONFIG),
        results=_json(workdir / RESULTS),
        log=[_parse(line, metrics) for line in _text(metrics).splitlines()],
        data=_json(data) if data.exists() else None,
    )


def render(run: Run) -> str:
    """The page of a run."""
    results = run.results
    title = escape(f"{results['dataset']}: CLIP adapted with {results['method']}")
    parts = [(name, heading, body) for name, heading, make in SECTIONS if (body := make(run))]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in parts)
    content = "\n".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>\n{body}\n</section>'
        for name, heading, body in parts
    )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=title,
        header=f'<h1>{title}</h1>\n<nav aria-label="Sections"><ul>{links}</ul></nav>',
        content=content,
        footer=f"lattec_jax {escape(str(results['version']))}. Made of results.json, metrics.jsonl "
        "and report_data.json in the work directory; the page fetches nothing.",
    )


SECTIONS = (
    ("health", "Health", sections.verdict),
    ("accuracy", "Before and after", sections.before_and_after),
    ("classes", "Classes", sections.classes),
    ("confusion", "Confusion", sections.confusion),
    ("curves", "Training", sections.training_curves),
    ("prototypes", "Prototypes", sections.prototypes),
    ("examples", "Training pictures and their texts", sections.examples),
    ("changed", "Pictures that changed class", sections.changed),
    ("run", "What was run", sections.what_was_run),
)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} of the run cannot be read: {error}; restore it") from error


def _parse(text: str, path: Path) -> dict[str, Any]:
    remedy = "restore it"
    if path.name in (RESULTS, REPORT_DATA):
        remedy += (
            f", or move {RESULTS} and {REPORT_DATA} away and repeat the run's command of python -m "
            "lattec_jax.train, which makes both again from the last checkpoint"
        )
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} of the run is not JSON: {error}; {remedy}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected JSON objects, found {shortened(content)}; {remedy}")
    if missing := [key for key in KEYS.get(path.name, ()) if key not in content]:
        raise DataError(f"{path} of the run lacks {', '.join(missing)}; {remedy}")
    return content


def _json(path: Path) -> dict[str, Any]:
    return _parse(_text(path), path)
