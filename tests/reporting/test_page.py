"""Content of the report, and text from files that must not break it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from lattec_jax.report import main
from lattec_jax.reporting import page
from lattec_jax.reporting.charts import format_number, heat_map, line_chart
from lattec_jax.runtime import schemas
from lattec_jax.runtime.errors import ConfigError, DataError
from tests.reporting.example import HOSTILE, LONG, NASTY, RTL, example, hostile, write_files

DRAWN = ("polyline", "path", "rect", "circle", "text")
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Outline(HTMLParser):
    """Collects elements, attributes and text, and checks that elements are nested correctly."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    assert parser.open == []
    return parser


@pytest.mark.parametrize(("classes", "labeled"), [(10, True), (10, False), (397, True), (2, False)])
def test_the_page_is_well_formed_small_and_without_scripts(classes, labeled):
    html = page.render(example(classes, labeled, images=20_000))
    assert len(html.encode()) < 10e6
    found = outline(html)
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            assert attributes.get(name, "#")[:5] in ("#", "data:") or attributes[name][0] == "#"
    assert any(NASTY in text for text in found.text)  # escaped
    drawn = [a["aria-label"] for t, a in found.tags if t == "svg" and "aria-label" in a]
    maps = [label for label in drawn if "true class down" in label]
    assert len(maps) == (2 if labeled and classes <= 100 else 0)
    text = " ".join(found.text)
    assert ("Accuracy on" in text) == labeled
    assert ("most confused pairs" in text) == labeled
    assert ("Fraction of the training images per predicted class" in text) == (not labeled)


def test_hostile_text_stays_text(tmp_path):
    """No text from the files of a run may become markup."""
    write_files(hostile(), tmp_path / "run")
    html = page.write(tmp_path / "run").read_text(encoding="utf-8")
    found = outline(html)
    plain = outline(page.render(example()))
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in plain.tags} | {"circle"}
    allowed = {name for _, attributes in plain.tags for name in attributes}
    found_names = {name for _, attributes in found.tags for name in attributes}
    assert found_names <= allowed | {"cx", "cy", "r"}
    policies = [a["content"] for t, a in found.tags if a.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert html.index("Content-Security-Policy") < html.index("<title>")
    text = "".join(found.text)
    assert "</script><script>alert(1)</script>" in text and "<!-- --!>" in text
    assert "$title ${content} $$" in text and LONG in text and RTL in text
    assert "nul esc[2J del" in text and "half \N{REPLACEMENT CHARACTER}" in text
    assert not {c for c in html if not c.isprintable()} - {"\n", "\u202e"}
    drawn = " ".join(v or "" for t, a in found.tags if t in DRAWN for v in a.values())
    assert "nan" not in drawn and "inf" not in drawn


def test_non_finite_values_are_shown_as_unknown():
    run = hostile()
    found = outline(page.render(run))  # values that were not read from files
    drawn = " ".join(v or "" for t, a in found.tags if t in DRAWN for v in a.values())
    assert "nan" not in drawn and "inf" not in drawn
    assert format_number(float("nan")) == format_number(None) == format_number(float("inf")) == "–"


def test_report_data_is_valid_json_and_reads_back(tmp_path):
    from lattec_jax.reporting import report_data

    data = hostile().data
    report_data.save(tmp_path, data)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "report_data.json").read_text(encoding="utf-8")
    again = json.loads(text, parse_constant=refuse)
    assert again == schemas.json_safe(data)
    assert again["prototypes"]["cosines"][0][1] is None
    texts = [text["text"] for entry in again["examples"] for text in entry["texts"]]
    assert set(texts) == {schemas.json_safe(text) for text in HOSTILE}


def test_the_verdict_comes_first_and_all_alarms_are_shown():
    run = example()
    text = [part.strip() for part in outline(page.render(run)).text if part.strip()]
    assert text.index("Health") < text.index(run.results["health"]["verdict"].split("\n")[0])
    headings = [h for h in ("Accuracy", "Classes", "Confusion", "Training")]
    positions = [len(text) - 1 - text[::-1].index(heading) for heading in headings]
    assert positions == sorted(positions)
    for alarm in run.results["health"]["alarms"]:
        assert alarm["message"] in text and f"Alarm: {alarm['name']}" in text
    assert run.results["health"]["alarms"]


def test_metrics_have_labels_and_zero_has_no_sign():
    run = example()
    run.results["per_class"]["adapted"][1] = 0.5 - 1e-9
    run.results["health"]["metrics"] |= {"drift_mean": -0.0, "coverage_group": 0.5}
    text = outline(page.render(run)).text
    for name in ("class_entropy_zero_shot", "drift_mean", "weight_class", "coverage_group"):
        assert not {name, name.replace("_", " ")} & {*text}
    assert "mean mixer weight of the texts: class" in text
    assert "fraction of images with a description: group" in text
    assert "= +0.0" in text and not {"= -0.0", "-0", "-0.00", "-0.000"} & {*text}


def test_a_run_without_report_data_has_a_page_without_images():
    found = outline(page.render(example()._replace(data=None)))
    assert "img" not in {tag for tag, _ in found.tags}
    assert "Health" in found.text and "Training" in found.text


def test_the_command_needs_neither_jax_nor_weights(tmp_path, capsys):
    write_files(example(), tmp_path / "run")
    main(["report", f"--workdir={tmp_path / 'run'}"])
    written = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert written == page.render(example())
    assert "report.html" in capsys.readouterr().out
    code = "import sys, lattec_jax.report; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_missing_and_damaged_files_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="--workdir is missing"):
        main(["report"])
    with pytest.raises(ConfigError, match=r"no results\.json in .*of a finished run"):
        main(["report", f"--workdir={tmp_path}"])
    write_files(example(), tmp_path / "run")
    (tmp_path / "run/report_data.json").write_text("{")
    with pytest.raises(DataError, match=r"report_data\.json is not JSON"):
        main(["report", f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(DataError, match=r"repeat the run's command of python -m lattec_jax\.train"):
        main(["report", f"--workdir={tmp_path / 'run'}"])
    for name, content, message in (
        (
            "report_data.json",
            "{}",
            r"report_data\.json: prototypes is missing; confusion is missing",
        ),
        ("report_data.json", "[]", r"report_data\.json: expected a JSON object, found \[\]"),
        (
            "metrics.jsonl",
            "[1]\n",
            r"metrics\.jsonl, line 1: content: expected an object, found \[1\]",
        ),
        ("results.json", "{}", r"results\.json: method is missing; dataset is missing"),
    ):
        (tmp_path / "run" / name).write_text(content)
        with pytest.raises(DataError, match=message):
            main(["report", f"--workdir={tmp_path / 'run'}"])
        shutil.rmtree(tmp_path / "run")
        write_files(example(), tmp_path / "run")
    (tmp_path / "run/config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        main(["report", f"--workdir={tmp_path / 'run'}"])


def test_line_charts_place_their_points():
    drawn = line_chart("t", {"a": [(0, 1.0), (10, 3.0), (20, 2.0)], "b": [], "c": [(20, 1.0)]})
    assert 'points="56.0,174.0 194.0,10.0 332.0,92.0"' in drawn
    assert "a: 1.00 → 2.00" in drawn and "b:" not in drawn
    assert drawn.count("<circle") == 1 and drawn.count("<polyline") == 2
    outline(line_chart("flat", {"<a>": [(5, 0.0)]}))


def test_heat_maps_have_opacity_and_text():
    drawn = heat_map("t", {(0, 1): (0.9, "9"), (1, 1): (0.1, "1")}, ["a", "<b>"], ("rows", "cols"))
    assert 'fill-opacity="0.90"><title>a → &lt;b&gt;: 9</title>' in drawn
    assert 'class="in dark">9<' in drawn and 'class="in pale">1<' in drawn


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.1234, "0.123"), (12.34, "12.3"), (1234.5, "1,234"), (8.5e-07, "8.5e-07"),
     (-0.5, "-0.500"), (2e9, "2e+09")],
)  # fmt: skip
def test_numbers_keep_three_digits(value, expected):
    assert format_number(value) == expected


def test_settings_that_the_run_did_not_use_are_not_shown():
    run = example(3, labeled=True, images=20)
    run.config["method"] = {"texts": ["class"], "labels": ["zero_shot"]}
    run.config["descriptions"] = {"engine": "pixels"}
    shown = page.render(run)
    assert all(f"<dt>{name}</dt>" in shown for name in ("texts", "captioning engine"))
    run.results["descriptions"] = None
    shown = page.render(run)
    assert "<dt>texts</dt>" in shown and "<dt>captioning engine</dt>" not in shown
    run.results["method"] = "reclip"
    shown = page.render(run)
    assert all(f"<dt>{name}</dt>" not in shown for name in ("texts", "pseudo-labels"))
