"""The tables of the paper (arXiv 2410.08211): their rows as configurations, and its numbers.

`paper_tables.json` contains the printed accuracies in percent by table, row and data set.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

TRAIN = "lattec_jax.train"
CLASSIFY = "captioning.classify"
_NUMBERS = Path(__file__).with_name("paper_tables.json")
# The paper's model, open_clip's tag of its weights, and the hub's repository of the same weights.
MODEL, PRETRAINED = "ViT-B-32", "laion2b_s34b_b79k"
REPOSITORY = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


@dataclasses.dataclass(frozen=True)
class Row:
    """One configuration of a table."""

    name: str  # of the runs; rows of several tables with the same name have the same runs
    label: str  # the row in the table and in `paper_tables.json`
    method: str = "latteclip"  # the option of the configuration file; "": none trains
    overrides: tuple[str, ...] = ()  # `--config.key=value` arguments
    needs_descriptions: bool = False  # whether it trains with descriptions
    module: str = TRAIN  # of the command
    seeded: bool = True  # False if every seed gives the same result
    ranked: bool = True  # whether the row can be best or second best of its table
    all_data: str | None = None  # in Figure 6, the name of the row with all the training images


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper."""

    key: str  # name on the command line
    title: str
    paper: str  # key in `paper_tables.json`
    rows: tuple[Row, ...]
    note: str = ""  # text below the table
    reading: str = ""  # a configuration key that the paper leaves open; the note states its value

    def printed(self, row: Row, dataset: str) -> float | None:
        """Return the paper's accuracy in percent (`dataset` may be "average") or None."""
        return numbers()[self.paper].get(row.label, {}).get(dataset)

    def printed_change(self, row: Row) -> float | None:
        """Return the paper's average change against all training images, in points (Figure 6)."""
        changes = numbers()[self.paper].get("average change against all the data", {})
        method, _, fraction = row.label.partition(", ")
        return changes.get(method, {}).get(fraction)


@functools.cache
def numbers() -> dict[str, Any]:
    """Return the paper's numbers."""
    return json.loads(_NUMBERS.read_text(encoding="utf-8"))


def paper_datasets() -> tuple[str, ...]:
    """Return the ten data sets in the paper's order."""
    return tuple(name for name in numbers()["table1_main"]["latteclip"] if name != "average")


def _latteclip_row(
    name: str, label: str, *overrides: str, needs_descriptions: bool = True, ranked: bool = True
) -> Row:
    return Row(name, label, "latteclip", overrides, needs_descriptions, ranked=ranked)


def _texts_row(*texts: str) -> Row:
    """Return a row of Table 2 for the kinds of text that are mixed."""
    label = "+".join(texts)
    listed = ",".join(f'"{text}"' for text in texts)
    override = f"--config.method.texts=({listed},)"
    return _latteclip_row(f"texts-{label}", label, override, needs_descriptions=texts != ("class",))


def _fraction(method: str, label: str, fraction: float, needs_descriptions: bool) -> Row:
    """Return a row of Figure 6 for a fraction of the training images."""
    return Row(
        f"{method}-fraction-{fraction:g}",
        f"{label}, {fraction:.0%}",
        method,
        (f"--config.dataset.train_fraction={fraction:g}",),
        needs_descriptions,
        all_data=method,
    )


_ORACLE = Row("flyp_oracle", "oracle (FLYP, true labels)", "flyp_oracle", ranked=False)

TABLES: dict[str, Table] = {
    table.key: table
    for table in (
        Table(
            "1",
            "Table 1. Main results",
            "table1_main",
            (
                _ORACLE,
                Row("llava_zero_shot", "llava zero-shot", "", module=CLASSIFY, seeded=False),
                Row("zero_shot", "clip zero-shot", "zero_shot", seeded=False),
                Row("reclip", "reclip", "reclip"),
                Row("flyp", "flyp + pseudo-label", "flyp"),
                _latteclip_row("latteclip", "latteclip"),
            ),
            "The oracle trains with true labels and is not ranked. ReCLIP's repository divides the "
            "loss of its copy V by the batch once more, which is not reproduced here.",
        ),
        Table(
            "2",
            "Table 2. Texts that are mixed",
            "table2_texts",
            (
                _latteclip_row("latteclip", "class+image+group"),
                _texts_row("class", "image"),
                _texts_row("class"),
                _texts_row("image", "group"),
                _texts_row("image"),
                _texts_row("group"),
                _texts_row("class", "group"),
            ),
            "Which texts the paper's rows of a single text mix is read from their order.",
        ),
        Table(
            "3",
            "Table 3. Parts of the method",
            "table3_method",
            (
                _latteclip_row("latteclip", "latteclip"),
                _latteclip_row(
                    "without-mixer", "without dynamic feature mixer", "--config.method.mixer=False"
                ),
                _latteclip_row(
                    "without-L_ft", "without L_ft", '--config.method.labels=("zero_shot",)'
                ),
                _latteclip_row(
                    "without-L_zs", "without L_zs", '--config.method.labels=("current",)'
                ),
                _latteclip_row(
                    "without-momentum",
                    "without momentum update",
                    "--config.method.momentum=0.0",
                    "--config.method.alpha=0.0",
                ),
            ),
            "Without momentum update, the new weighted texts replace the prototypes: in our "
            "reading α = μ = 0.",
        ),
        Table(
            "4",
            "Table 4. Correct images in a group",
            "table4_correct_images_in_group",
            (
                _latteclip_row("latteclip", "pseudo-labels"),
                *(
                    _latteclip_row(
                        f"correct-{n}",
                        f"{n} correct",
                        f"--config.descriptions.correct_per_group={n}",
                        ranked=False,
                    )
                    for n in (1, 2, 3, 4)
                ),
            ),
            "An analysis: all rows but the first group training images by their true labels; they "
            "are not ranked. Our reading, since the paper does not state which label counts: an "
            "image of a group is correct if its true label is the pseudo-label of the image that "
            "the group is for (config.descriptions.correct_label=pseudo, the default); with true, "
            "if it is that image's own true label.",
            reading="descriptions.correct_label",
        ),
        Table(
            "5",
            "Table 5. Images in a group",
            "table5_images_per_group",
            tuple(
                _latteclip_row("latteclip", "4")
                if n == 4
                else _latteclip_row(
                    f"group-of-{n}", f"{n}", f"--config.descriptions.group_size={n}"
                )
                for n in (2, 4, 8, 16)
            ),
        ),
        Table(
            "figure6",
            "Figure 6. Fraction of the training images",
            "figure6_training_data",
            (
                _latteclip_row("latteclip", "latteclip, 100%"),
                _fraction("latteclip", "latteclip", 0.2, True),
                _fraction("latteclip", "latteclip", 0.01, True),
                dataclasses.replace(_ORACLE, label="oracle, 100%"),
                _fraction("flyp_oracle", "oracle", 0.2, False),
                _fraction("flyp_oracle", "oracle", 0.01, False),
            ),
            "The change is against the row with all the training images. The paper prints averages "
            "over its ten data sets only; which of the oracle's two belongs to which fraction is "
            "our reading.",
        ),
    )
}
