"""Command lines: the list of commands, `--help`, and mistakes."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from lattec_jax import __main__ as lister
from lattec_jax import predict, train
from lattec_jax.commands import COMMANDS, module_file, summary
from lattec_jax.runtime import cli
from lattec_jax.runtime.config import flatten, parse
from lattec_jax.runtime.config_comments import comment_of, comments
from lattec_jax.runtime.config_file import packaged_configs
from lattec_jax.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lattec_jax", "captioning", "convert")
HEAVY = {
    "jax", "jaxlib", "flax", "optax", "orbax", "torch", "torchvision", "transformers", "open_clip",
    "scipy", "sklearn", "tensorflow_datasets",
}  # fmt: skip
# Runs every command's help in one process: a heavy import by any of them shows. (runpy warns of
# modules that are imported already.)
EVERY_HELP = """
import contextlib, io, json, runpy, sys
found = {}
for module in sys.argv[1:]:
    given = [["--help"], ["-h"]]
    if module == "lattec_jax.train":
        given.append(["--config=configs/demo.py", "--help"])
    for flags in given:
        sys.argv = [module, *flags]
        out, status = io.StringIO(), None
        with contextlib.redirect_stdout(out):
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as ended:
                status = ended.code
        found[" ".join([module, *flags])] = status, out.getvalue()
json.dump([found, sorted({name.split(".")[0] for name in sys.modules})], sys.stdout)
"""


def help_of(capsys: pytest.CaptureFixture, main, *arguments: str) -> str:
    """What a command prints for `--help`."""
    with pytest.raises(SystemExit) as ended:
        main(["command", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def shown_keys(text: str) -> dict[str, str]:
    """Key -> value, as the help shows them."""
    return dict(re.findall(r"^  config\.(\S+) = (.*)$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def every_help() -> tuple[dict[str, tuple[int, str]], set[str]]:
    """Module and flag -> status and text; and the packages that all of them loaded."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::RuntimeWarning",
            "-c",
            EVERY_HELP,
            *COMMANDS.values(),
            "lattec_jax",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    found, loaded = json.loads(done.stdout)
    return {key: tuple(value) for key, value in found.items()}, set(loaded)


def test_every_command_is_listed():
    runnable = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            if '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8"):
                parts = file.relative_to(ROOT).with_suffix("").parts
                runnable.add(".".join(parts).removesuffix(".__main__"))
    assert runnable - {"lattec_jax"} == set(COMMANDS.values())


@pytest.mark.parametrize(("name", "module"), COMMANDS.items())
def test_each_answers_help(name, module, every_help):
    found, _ = every_help
    status, text = found[f"{module} --help"]
    assert status == 0
    assert found[f"{module} -h"] == (0, text)
    assert text.startswith(summary(module))
    examples = (f"    python -m {module} ", f"    python -m lattec_jax {name} ")
    assert any(example in text for example in examples)
    tree = ast.parse(module_file(module).read_text(encoding="utf-8"))
    takes_config = "read_config" in {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    flag = "  --config=FILE[:preset=NAME,method=NAME]  (required; for example configs/demo.py)"
    assert (flag in text) == takes_config
    assert ("  --[no]print_config  (default: false)" in text) == takes_config


def test_help_loads_neither_jax_nor_torch(every_help):
    _, loaded = every_help
    assert {"lattec_jax", "captioning", "convert", "absl"} <= loaded
    assert not loaded & HEAVY


def test_only_absl_reads_flags():
    readers = ("argparse", "optparse", "getopt", "click", "fire", "tyro")
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert not set(names) & set(readers), file


def test_the_commands_are_listed(capsys):
    for argv in (["lattec_jax"], ["lattec_jax", "--help"], ["lattec_jax", "-h"]):
        lister.main(argv)
        lines = capsys.readouterr().out.splitlines()
        for name, module in COMMANDS.items():
            line = next(line for line in lines if line.startswith(f"  {name} "))
            assert line.split(maxsplit=1)[1] == summary(module)
            assert len(summary(module)) > 20


def test_a_command_runs_by_its_name(capsys):
    by_name = help_of(capsys, lister.main, "report", "--help")
    assert by_name == help_of(capsys, lister.main, "lattec_jax.report", "-h")
    assert by_name.startswith("Write the report of a finished run.")
    with pytest.raises(ConfigError, match="--workdir is missing; for example --workdir=runs/"):
        lister.main(["lattec_jax", "report"])
    with pytest.raises(ConfigError, match=r"no command 'trian'\. Did you mean 'train'\?"):
        lister.main(["lattec_jax", "trian", "--help"])
    with pytest.raises(ConfigError, match="no command '--tables=1'"):
        lister.main(["lattec_jax", "--tables=1"])


def test_flags_are_shown_with_their_defaults(capsys):
    lines = help_of(capsys, predict.main, "a.jpg", "-h").splitlines()
    for line, after in (
        ("  --workdir=TEXT  (required; for example runs/digits-latteclip-s0)", "Work directory"),
        ("  --top=NUMBER  (default: 1)", "Classes to show"),
        ("  --format=table|jsonl|csv  (default: not set)", "Output format; default: a table"),
    ):
        assert lines[lines.index(line) + 1].strip().startswith(after)
    assert lines[lines.index("Arguments:") + 1] == "  IMAGE_OR_FOLDER ..."
    assert "  --[no]distributed  (default: false)" in help_of(capsys, train.main, "--help")


def test_arguments_after_two_dashes_are_no_flags():
    assert cli.asks_for_help(["predict", "a.jpg", "-h"])
    assert not cli.asks_for_help(["predict", "--", "-h"])


FILE = "configs/demo.py:preset=released_code"


@pytest.mark.parametrize("written", [[f"--config={FILE}"], ["--config", FILE]])
def test_the_resolved_configuration_is_shown(written, capsys):
    overrides = ["--config.train.epochs", "3"]
    text = help_of(capsys, train.main, *written, "--workdir=w", *overrides, "--help")
    config, _ = parse(["train", *written, *overrides])
    assert config.train.epochs == 3
    shown = {key: value.partition("  (")[0] for key, value in shown_keys(text).items()}
    assert shown == {key: repr(value) for key, value in flatten(config)}
    assert "config.train.max_steps = 60\n" in text  # the demo's, under both presets
    assert "config.method.group_text = 'redrawn'  (paper: 'own', released_code: 'redrawn')" in text
    # In the order of configs/common.py, each with the comment that stands there.
    keys = list(shown_keys(text))
    assert keys[:3] == ["preset", "seed", "artifacts"]
    assert keys.index("train.batch_size") < keys.index("train.beta1") < keys.index("wise_ft")
    assert "  config.eval_every = 0\n        steps; 0: only at the end\n" in text


@pytest.mark.parametrize("file", packaged_configs(), ids=lambda file: file.stem)
def test_every_key_has_a_comment(file):
    config, _ = parse(["train", f"--config={file}"])
    found = comments(file)
    # These are named by their section.
    named = ("dataset.expected.", "descriptions.prompts.")
    keys = [key for key, _ in flatten(config)]
    assert not [key for key in keys if not found.get(key) and not key.startswith(named)]
    assert all(comment_of(key, found) for key in keys)


def test_a_wrong_configuration_is_an_error_with_help_too(capsys):
    with pytest.raises(ConfigError, match=r"Did you mean 'demo\.py'"):
        train.main(["train", "--help", "--config=configs/dmo.py"])
    with pytest.raises(ConfigError, match=r"config\.sed\. Did you mean 'seed'"):
        train.main(["train", "--config=configs/demo.py", "--config.sed=1", "-h"])
    assert capsys.readouterr().out == ""
    # A boolean override has no value, so a flag that follows is not its value.
    for written in ("--config.method.mixer", "--noconfig.method.mixer"):
        text = help_of(capsys, train.main, "--config=configs/demo.py", written, "--workdir=w", "-h")
        assert f"config.method.mixer = {written.startswith('--config')}" in text
    # A flag that does not exist is what help is asked for.
    assert "--workdir" in help_of(capsys, train.main, "--wrkdir=x", "--help")


def test_comments_are_those_of_the_files(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from configs import demo\n"
        "def get_config():\n"
        "    mine = demo.get_config()\n"
        "    # Not this one: a line is between.\n"
        "\n"
        "    # From two lines\n"
        "    # of its own.\n"
        "    mine.seed = 7  # And behind it.\n"
        "    mine.compute.remat, mine.compute.fsdp = True, 1  # both\n"
        "    image_cache = mine.image_cache  # all of it\n"
        "    image_cache.max_unreadable_fraction = (\n"
        "        0.5  # half\n"
        "    )\n"
        "    mine.dataset.expected = {  # counts\n"
        "        'classes': 3,  # not of the section\n"
        "        'train': 0,\n"
        "        'test': 0,\n"
        "    }\n"
        "    mine.log_every = 3  # noqa: a tool's\n"
        "    other = 5  # of no key\n"
        "    return mine\n"
    )
    config, _ = parse(["train", f"--config={mine}"])
    found = comments(mine)
    assert found["seed"][-1] == "From two lines of its own. And behind it."
    assert found["compute.remat"][-1] == found["compute.fsdp"][-1] == "both"
    assert found["compute.fsdp"][0].startswith("devices that parameters are split over")
    assert found["image_cache"] == ("all of it",)
    assert found["image_cache.max_unreadable_fraction"][-1] == "half"
    assert found["dataset.expected"][-1] == "counts"
    assert found["log_every"] == ("steps",)  # of common.py, which demo.py imports
    assert "other" not in found
    assert set(found) <= {
        ".".join(key.split(".")[:depth]) for key, _ in flatten(config) for depth in range(1, 9)
    }
    text = help_of(capsys, train.main, f"--config={mine}", "-h")
    assert "  config.dataset.expected.classes = 3\n" in text
    assert shown_keys(text)["seed"] == "7"


def test_a_missing_flag_and_an_unexpected_argument_are_refused():
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("out-file", None, "Where to.", flag_values=values)

    required = {"out-file": "a.txt"}
    values, rest = cli.read(["x", "--out-file", "b", "c"], "", define, required, "NAME")
    assert (values["out-file"].value, rest) == ("b", ["c"])
    with pytest.raises(ConfigError, match=r"--out-file is missing; for example --out-file=a\.txt"):
        cli.read(["x"], "", define, required)
    with pytest.raises(ConfigError, match="unexpected argument 'c'"):
        cli.read(["x", "--out-file=b", "c"], "", define, required)
    with pytest.raises(ConfigError, match="Unknown command line flag 'out'"):
        cli.read(["x", "--out=b"], "", define, required)


@pytest.mark.parametrize(
    "error",
    [
        NotADirectoryError(20, "Not a directory", "a\x1b/b"),
        IsADirectoryError(21, "Is a directory", "a\x1b"),
    ],
)
def test_an_error_that_names_a_file_has_no_traceback(error, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.command(main)
    assert ended.value.code == 2
    assert "a directory: 'a\\x1b" in capsys.readouterr().err


def test_a_system_error_without_a_file_keeps_its_traceback():
    def main(argv):
        raise ConnectionResetError(104, "reset")

    with pytest.raises(ConnectionResetError):
        cli.command(main)


def test_paths_that_are_not_valid_text_can_be_printed(tmp_path):
    script = (
        "import os; from lattec_jax.runtime import cli\n"
        "from lattec_jax.runtime.text import print_escaped\n"
        "cli.command(lambda argv: (print(os.fsdecode(b'a\\xff')), print_escaped('b\\x1b[31m')))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("a\\udcff\nb\\x1b[31m\n", "")


def test_what_is_logged_is_printable_whatever_other_packages_log():
    script = (
        "import logging; from lattec_jax.runtime import cli\n"
        "def main(argv):\n"
        "    logging.warning('of another package')\n"
        "    logging.getLogger('lattec_jax.data').warning('%s is unreadable', '\\x1b[31mred')\n"
        "cli.command(main)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stderr == "warning: of another package\nwarning: \\x1b[31mred is unreadable\n"
