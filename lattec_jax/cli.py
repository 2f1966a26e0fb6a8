"""The command line of every command: its flags, `--help`, and how it ends. Imports no JAX.

A command is a module with a docstring (what it does, an example) and a `main(argv)` that reads its
flags by `read`, or by `read_config` where it takes a configuration. Both answer `--help`, so `main`
reads the flags first and imports what is slow to import, such as JAX, after that.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict

from lattec_jax.config import leaves, parse, parse_flags
from lattec_jax.config_comments import comment_of, comments, in_order
from lattec_jax.errors import ConfigError, UserError
from lattec_jax.stop import STATUS, Terminated

Define = Callable[[flags.FlagValues], None]

# No room, over quota, too large, read-only, not allowed.
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
_HELP = ("-h", "-help", "--help")
_FORMS = {
    "string": "TEXT",
    "int": "NUMBER",
    "float": "NUMBER",
    "comma separated list of strings": "A,B,...",
}
WIDTH = 100  # columns of the help


def define_nothing(values: flags.FlagValues) -> None:
    """For a command without flags of its own."""


def define_workdir(values: flags.FlagValues) -> None:
    """The flag of a command that looks at a run."""
    flags.DEFINE_string("workdir", "", "Work directory of a run.", flag_values=values)


def define_distributed(values: flags.FlagValues) -> None:
    """The flag of a command that several processes can run. How a run is computed is not part of
    its configuration: it may be continued by another number of processes."""
    flags.DEFINE_boolean(
        "distributed", False, "Join the other processes of this job.", flag_values=values
    )


# What `--workdir` of a run that exists may be.
WORKDIR = {"workdir": "runs/digits-latteclip-s0"}


def read(
    argv: Sequence[str],
    doc: str | None,
    define: Define = define_nothing,
    required: Mapping[str, str] | None = None,
    arguments: str = "",
) -> tuple[flags.FlagValues, list[str]]:
    """Read the flags of a command without a configuration.

    Args:
        argv: the whole command line, program name first.
        doc: the command's docstring, for `--help`.
        define: adds the flags.
        required: flags that must be there, each with an example of its value.
        arguments: what the arguments behind the flags are; "": there are none.

    Returns:
        The flags and the arguments behind them.

    Raises:
        ConfigError: an unknown or missing flag, a value of the wrong type, or an argument too many.
        SystemExit: `--help` was answered.
    """
    required = required or {}
    values = flags.FlagValues()
    define(values)
    if asks_for_help(argv):
        _show([*_head(doc), *_flag_lines(values, required, arguments)])
    rest = parse_flags(values, argv)[1:]
    if rest and not arguments:
        raise ConfigError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    _check_required(values, required)
    return values, rest


def read_config(
    argv: Sequence[str],
    doc: str | None,
    define: Define = define_nothing,
    required: Mapping[str, str] | None = None,
) -> tuple[ConfigDict, flags.FlagValues]:
    """Read `--config=FILE`, its `--config.key=value` overrides and a command's own flags.

    Args:
        argv, doc, define, required: see `read`.

    Returns:
        The resolved configuration and the flags.

    Raises:
        ConfigError, SystemExit: see `read` and `lattec_jax.config.parse`.
    """
    required = required or {}
    if asks_for_help(argv):
        own = flags.FlagValues()
        define(own)
        lines = [*_head(doc), *_flag_lines(own, required, "", config=True)]
        given = _config_arguments(argv[1:])
        if any(re.match(r"--?config(=|$)", argument) for argument in given):
            lines += ["", *_config_lines(*parse([argv[0], *given]))]
        _show(lines)
    config, values = parse(argv, define)
    _check_required(values, required)
    return config, values


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether `--help` or `-h` is on a command line, before a "--"."""
    arguments = list(argv[1:])
    if "--" in arguments:
        arguments = arguments[: arguments.index("--")]
    return any(argument in _HELP for argument in arguments)


def _check_required(values: flags.FlagValues, required: Mapping[str, str]) -> None:
    for name, example in required.items():
        if values[name].value in (None, ""):
            raise ConfigError(f"--{name} is missing; for example --{name}={example}")


def _config_arguments(arguments: Sequence[str]) -> list[str]:
    """Those that say what the configuration is, also where a value is an argument of its own."""
    found, name = [], ""
    for argument in arguments:
        if re.match(r"--?(no)?config([.=]|$)", argument):
            found.append(argument)
            name = "" if "=" in argument else argument
        elif name and argument not in _HELP:
            found.append(argument)
            name = ""
    return found


# ---------------------------------------------------------------------------------- the help's text


def _show(lines: Sequence[str]) -> NoReturn:
    """Print the help and end."""
    print("\n".join(lines), flush=True)
    sys.exit(0)


def _head(doc: str | None) -> list[str]:
    return [(doc or "").strip(), "", "Flags:"]


def _entry(form: str, note: str, *paragraphs: str) -> Iterator[str]:
    """A flag or key, and what it is."""
    yield f"  {form}  ({note})" if note else f"  {form}"
    indent = " " * 8
    for paragraph in paragraphs:
        yield from textwrap.wrap(
            paragraph, WIDTH, initial_indent=indent, subsequent_indent=indent,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip


def _flag_lines(
    values: flags.FlagValues, required: Mapping[str, str], arguments: str, config: bool = False
) -> Iterator[str]:
    """Each flag with its default and help, and the arguments."""
    if config:
        yield from _entry(
            "--config=FILE",
            "required; for example configs/demo.py",
            "Configuration, one that is packaged or your own; --help behind it lists its keys.",
        )
        yield from _entry(
            "--config.KEY=VALUE", "", "Change a value of the configuration, as often as you like."
        )
    for name in values:
        flag = values[name]
        note = f"default: {_default(flag)}"
        if name in required:
            note = f"required; for example {required[name]}"
        choices = "|".join(_choices(flag))
        yield from _entry(_form(flag), note, flag.help.removeprefix(f"<{choices}>: "))
    yield from _entry("--help, -h", "", "Print this and end.")
    if arguments:
        yield from ("", "Arguments:", *_entry(arguments, ""))


def _form(flag: flags.Flag) -> str:
    """A flag as it is written."""
    kind = flag.flag_type()
    if kind == "bool":
        return f"--[no]{flag.name}"
    return f"--{flag.name}={'|'.join(_choices(flag)) or _FORMS.get(kind, kind)}"


def _choices(flag: flags.Flag) -> Sequence[str]:
    return getattr(flag.parser, "enum_values", ())


def _default(flag: flags.Flag) -> str:
    if flag.default in (None, "", []):
        return "not set"
    if isinstance(flag.default, list):
        return ",".join(flag.default)
    return str(flag.default).lower() if flag.boolean else str(flag.default)


def _config_lines(config: ConfigDict, values: flags.FlagValues) -> Iterator[str]:
    """Every key with its value, as this command line has it, and its comment."""
    path = Path(values["config"].config_filename)
    found, known = comments(path), dict(leaves(config))
    yield f"Configuration {path}, as it stands on this command line:"
    for key in in_order(known, found):
        yield from _entry(f"config.{key} = {known[key]!r}", "", *comment_of(key, found))


# ------------------------------------------------------------------------------------------ the end


def command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command: print errors of the user's without a traceback and exit with status 2.

    A command that a signal ended exits with 75 (`lattec_jax.stop`), one that Ctrl-C ended with 130.
    """
    try:
        main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output has gone, as `| head` goes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        print(f"error: {error}. Mend it; the same command continues", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        reason = f" ({interrupt})" if str(interrupt) else ""
        print(f"interrupted{reason}; the same command continues", file=sys.stderr)
        sys.exit(STATUS if isinstance(interrupt, Terminated) else 130)
