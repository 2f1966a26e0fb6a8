"""Format the tables of a sweep as Markdown and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lattec_jax.paper_tables.cells import BEST, SECOND, Cell, CollectedResults, Sheet, listed
from lattec_jax.paper_tables.plan import Sweep, column, runs_here
from lattec_jax.reporting.markup import escape
from lattec_jax.runtime.text import sanitize

_LEGEND = (
    "Top-1 accuracy (%) on the test images, last step, mean ± standard deviation over the training "
    "seeds; all seeds have the same groups and the same fraction of the images. (2 of 3): number "
    "of finished runs. Below it the paper's number and, in brackets, ours minus the paper's; a run "
    "that differs in anything that the paper fixes is shown without it, and the note below the "
    "table gives the reason. Best and second best of a column are marked. Without a number of "
    "ours: not run yet, or there are no labels."
)
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 90em; padding: 0 1em; }
div { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.5em 0 2em; }
th, td { padding: 0.35em 0.7em; text-align: right; white-space: nowrap; border-top: 1px solid #ccc;
  font-variant-numeric: tabular-nums; vertical-align: top; }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-top: 0; border-bottom: 2px solid #555; }
small { color: #555; }
"""


def markdown(sheets: Iterable[Sheet], facts: Sequence[str]) -> str:
    """Return the tables as Markdown, best bold, second best in italics."""
    parts = [f"{_LEGEND} Bold is best, italics second best."]
    parts.append("\n".join(f"- {sanitize(fact)}" for fact in facts))
    for sheet in sheets:
        lines = [f"| | {' | '.join(sheet.columns)} |", f"|---|{'---|' * len(sheet.columns)}"]
        for label, cells in zip(sheet.rows, sheet.cells, strict=True):
            lines.append(f"| {label} | {' | '.join(_markdown_cell(cell) for cell in cells)} |")
        parts += [f"## {sheet.title}", "\n".join(lines)]
        if sheet.note:
            parts.append(sanitize(sheet.note))
    return "\n\n".join(parts) + "\n"


def page(sheets: Iterable[Sheet], facts: Sequence[str]) -> str:
    """Return the tables as HTML, best bold, second best underlined."""
    body = [f"<p>{escape(_LEGEND)} Bold is best, underlined second best.</p>"]
    body.append("<ul>" + "".join(f"<li>{escape(fact)}</li>" for fact in facts) + "</ul>")
    for sheet in sheets:
        head = "".join(f'<th scope="col">{escape(c)}</th>' for c in ("", *sheet.columns))
        rows = "".join(
            f'<tr><th scope="row">{escape(label)}</th>'
            + "".join(f"<td>{_html_cell(cell)}</td>" for cell in cells)
            + "</tr>\n"
            for label, cells in zip(sheet.rows, sheet.cells, strict=True)
        )
        body.append(f"<h2>{escape(sheet.title)}</h2>")
        body.append(
            f"<div><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
        )
        if sheet.note:
            body.append(f"<p>{escape(sheet.note)}</p>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>lattec_jax: tables</title><style>{_STYLE}</style></head>\n<body>"
        "<h1>The tables of LatteCLIP, ours beside the paper's</h1>\n"
        + "\n".join(body)
        + "</body></html>\n"
    )


def facts(sweep: Sweep, found: CollectedResults) -> list[str]:
    """Return lines that describe the runs: number, models, devices, data sets and protocols."""
    wanted = [
        len(sweep.row_seeds(row))
        for dataset in sweep.datasets
        for row in sweep.rows
        if runs_here(sweep, dataset, row)
    ]
    runs = [run for several in found.runs.values() for run in several.values()]
    lines = [
        f"{len(runs)} of {sum(wanted)} runs are there; seeds {', '.join(map(str, sweep.seeds))}.",
        "The paper: arXiv 2410.08211, OpenCLIP ViT-B/32 (laion2b_s34b_b79k), CoOp's splits, last "
        "epoch.",
    ]
    if sweep.overrides:
        lines.append(f"All runs with: {' '.join(sweep.overrides)}.")
    for title, key in (("Preset", "preset"), ("Model", "model"), ("Weights", "weights")):
        lines.append(f"{title}: {listed(runs, key)}.")
    lines.append(f"Computed in {listed(runs, 'dtype')} on {listed(runs, 'device')}.")
    for dataset in sweep.datasets:
        lines += _facts_of(sweep, dataset, found)
    return [*lines, *(f"Left out: {damage}" for damage in found.damaged)]


def _facts_of(sweep: Sweep, dataset: str, found: CollectedResults) -> list[str]:
    """Return lines that describe the runs on a data set."""
    own = [run for row in sweep.rows for run in found.of(dataset, row.name).values()]
    lines = []
    if own:
        train, test = (max(run[key] for run in own) for key in ("n_train", "n_test"))
        lines.append(
            f"{column(dataset)}: {train:,} training and {test:,} test images; protocol: "
            f"{listed(own, 'protocol')}."
        )
    for row in sweep.rows:
        if not runs_here(sweep, dataset, row):
            engine = sweep.config(dataset).descriptions.engine
            lines.append(
                f"{column(dataset)}: no {row.label}, the engine {engine} cannot name classes."
            )
    return lines


def _ours(cell: Cell) -> str:
    sign = "+" if cell.change else ""
    spread = "" if cell.deviation is None else f" ± {cell.deviation:.2f}"
    missing = (
        "" if len(cell.values) == cell.num_runs else f" ({len(cell.values)} of {cell.num_runs})"
    )
    return f"{cell.mean:{sign}.2f}{spread}{missing}"


def _papers(cell: Cell) -> str:
    """Format the paper's number and the difference; "" without one."""
    if cell.paper is None:
        return ""
    sign = "+" if cell.change else ""
    difference = "" if cell.difference is None else f" ({cell.difference:+.2f})"
    return f"{cell.paper:{sign}.2f}{difference}"


def _markdown_cell(cell: Cell) -> str:
    mark = {BEST: "**", SECOND: "*"}.get(cell.rank, "")
    ours = f"{mark}{_ours(cell)}{mark}" if cell.values else ""
    return "<br>".join(filter(None, [ours, _papers(cell)]))


def _html_cell(cell: Cell) -> str:
    tag = {BEST: "b", SECOND: "u"}.get(cell.rank, "span")
    ours = f"<{tag}>{_ours(cell)}</{tag}>" if cell.values else ""
    papers = _papers(cell)
    return "<br>".join(filter(None, [ours, f"<small>{papers}</small>" if papers else ""]))
