"""Write the report from the files of a work directory. Imports no JAX."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from lattec_jax.reporting import sections
from lattec_jax.reporting.markup import escape
from lattec_jax.reporting.sections import RunFiles
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.run_directory import CONFIG, METRICS, REPORT, REPORT_DATA, RESULTS

TEMPLATE = Path(__file__).with_name("page.html")


def write(workdir: Path) -> Path:
    """Write `report.html` into the work directory of a finished run and return its path; see
    `read` for the errors."""
    path = workdir / REPORT
    write_atomic(path, render(read(workdir)))
    return path


def read(workdir: Path) -> RunFiles:
    """Read the files of a finished run. Without `report_data.json`, the page has no images.

    Raises:
        ConfigError: the run has not finished.
        DataError: a file of the run is damaged.
    """
    if not (workdir / RESULTS).exists():
        raise ConfigError(
            f"no {RESULTS} in {workdir}; expected the work directory of a finished run. Repeat its "
            "python -m lattec_jax.train command to finish it"
        )
    from lattec_jax.reporting import report_schema
    from lattec_jax.runtime import schemas

    results = schemas.read(workdir / RESULTS, report_schema.Results, DataError, _ADVICE)
    data, path = None, workdir / REPORT_DATA
    if path.exists():
        data = schemas.read(path, report_schema.ReportData, DataError, _ADVICE)
        report_schema.check_classes(data, len(results["class_names"]), str(path), _ADVICE)
    return RunFiles(
        config=schemas.read(workdir / CONFIG, dict[str, Any], DataError, "restore it"),
        results=results,
        log=[line for _, line in schemas.log_lines(workdir / METRICS)],
        data=data,
    )


_ADVICE = (
    f"restore it, or move {RESULTS} and {REPORT_DATA} away and repeat the run's command of python "
    "-m lattec_jax.train, which writes both again from the last checkpoint"
)


def render(run: RunFiles) -> str:
    """Return the report as HTML."""
    results = run.results
    title = escape(f"{results['dataset']}: CLIP adapted with {results['method']}")
    parts = [(name, heading, body) for name, heading, make in SECTIONS if (body := make(run))]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in parts)
    content = "\n".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>\n{body}\n</section>'
        for name, heading, body in parts
    )
    version = escape(str(results.get("version")))
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=title,
        header=f'<h1>{title}</h1>\n<nav aria-label="Sections"><ul>{links}</ul></nav>',
        content=content,
        footer=f"lattec_jax {version}. Generated from results.json, metrics.jsonl and "
        "report_data.json in the work directory. The page loads nothing from the network.",
    )


SECTIONS = (
    ("health", "Health", sections.health),
    ("accuracy", "Accuracy", sections.accuracy),
    ("classes", "Classes", sections.classes),
    ("confusion", "Confusion", sections.confusion),
    ("curves", "Training", sections.training_curves),
    ("prototypes", "Prototypes", sections.prototypes),
    ("examples", "Training images and their texts", sections.examples),
    ("changed", "Images that changed class", sections.changed_images),
    ("run", "Settings", sections.settings),
)
