"""Command lines: flags, `--help` and exit statuses. Imports no JAX.

A command is a module with a docstring (what it does, an example) and a `main(argv)` that parses
its flags with `read`, or with `read_config` if it takes a configuration. Both answer `--help`, so
`main` parses the flags first and only then imports what is slow to import, such as JAX.
"""

from __future__ import annotations

import errno
import io
import logging
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

from lattec_jax.runtime.config import leaves, parse, parse_flags
from lattec_jax.runtime.config_comments import comment_of, comments, in_order
from lattec_jax.runtime.config_schema import allowed
from lattec_jax.runtime.errors import ConfigError, UserError
from lattec_jax.runtime.preemption import STATUS, Terminated
from lattec_jax.runtime.text import escape_unprintable, truncate

Define = Callable[[flags.FlagValues], None]

# No room, over quota, too large, read-only, not allowed.
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
# Another kind of file than expected, none at all, too long a name, links in a circle, a device that
# fails: of a path that the message names.
_NOT_USABLE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG,
    errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EPERM, errno.EBUSY, errno.EIO, errno.ESTALE,
)  # fmt: skip
_HELP = ("-h", "-help", "--help")
_FORMS = {
    "string": "TEXT",
    "int": "NUMBER",
    "float": "NUMBER",
    "comma separated list of strings": "A,B,...",
}
WIDTH = 100  # columns of the help


def define_nothing(values: flags.FlagValues) -> None:
    """Define no flags: the default."""


def define_workdir(values: flags.FlagValues, description: str = "Work directory of a run.") -> None:
    """Define `--workdir`."""
    flags.DEFINE_string("workdir", "", description, flag_values=values)


def define_distributed(values: flags.FlagValues) -> None:
    """Define `--distributed`, for a command that several processes can run.

    It is a flag and not part of the configuration: a run can be continued by another number of
    processes.
    """
    flags.DEFINE_boolean(
        "distributed", False, "Join the other processes of this job.", flag_values=values
    )


# For `required`.
WORKDIR = {"workdir": "runs/digits-latteclip-s0"}


def read(
    argv: Sequence[str],
    doc: str | None,
    define: Define = define_nothing,
    required: Mapping[str, str] | None = None,
    arguments: str = "",
) -> tuple[flags.FlagValues, list[str]]:
    """Parse the flags of a command that takes no configuration.

    Args:
        argv: the whole command line, program name first.
        doc: the command's docstring, for `--help`.
        define: defines the flags.
        required: required flags, each with an example of its value.
        arguments: name of the positional arguments; "": the command takes none.

    Returns:
        The flags and the positional arguments.

    Raises:
        ConfigError: an unknown or missing flag, a value of the wrong type, or an unexpected
            positional argument.
        SystemExit: after `--help` was printed.
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
    """Parse `--config=FILE`, its `--config.key=value` overrides and a command's own flags.

    Args:
        argv, doc, define, required: see `read`.

    Returns:
        The resolved configuration and the flags.

    Raises:
        ConfigError, SystemExit: see `read` and `lattec_jax.runtime.config.parse`.
    """
    required = required or {}
    if asks_for_help(argv):
        own = flags.FlagValues()
        define(own)
        lines = [*_head(doc), *_flag_lines(own, required, "", config=True)]
        given = config_arguments(argv[1:])
        if any(re.match(r"--?config(=|$)", argument) for argument in given):
            lines += ["", *_config_lines(*parse([argv[0], *given]))]
        _show(lines)
    config, values = parse(argv, define)
    _check_required(values, required)
    return config, values


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a command line has `--help` or `-h`, before a "--"."""
    arguments = list(argv[1:])
    if "--" in arguments:
        arguments = arguments[: arguments.index("--")]
    return any(argument in _HELP for argument in arguments)


def _check_required(values: flags.FlagValues, required: Mapping[str, str]) -> None:
    for name, example in required.items():
        if values[name].value in (None, ""):
            raise ConfigError(f"--{name} is missing; for example --{name}={example}")


def config_arguments(arguments: Sequence[str]) -> list[str]:
    """The `--config` arguments, including values written as a separate argument."""
    found, may_follow = [], False
    for argument in arguments:
        if re.match(r"--?(no)?config([.=]|$)", argument):
            found.append(argument)
            may_follow = "=" not in argument  # a boolean has no value
        elif may_follow and not re.match(r"-(?!\d)", argument):
            found.append(argument)
            may_follow = False
        else:
            may_follow = False
    return found


# ---------------------------------------------------------------------------------------- help text


def _show(lines: Sequence[str]) -> NoReturn:
    """Print the help and exit with status 0."""
    print("\n".join(lines), flush=True)
    sys.exit(0)


def _head(doc: str | None) -> list[str]:
    return [(doc or "").strip(), "", "Flags:"]


def _entry(form: str, note: str, *paragraphs: str) -> Iterator[str]:
    """Lines for a flag or a configuration key and its description."""
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
    """Lines for each flag, with default and description, and for the positional arguments."""
    if config:
        yield from _entry(
            "--config=FILE",
            "required; for example configs/demo.py",
            "Configuration file, packaged or your own. Add --help to list its keys.",
        )
        yield from _entry(
            "--config.KEY=VALUE", "", "Override a value of the configuration; can be repeated."
        )
    for name in values:
        flag = values[name]
        note = f"default: {_default(flag)}"
        if name in required:
            note = f"required; for example {required[name]}"
        choices = "|".join(_choices(flag))
        yield from _entry(_form(flag), note, flag.help.removeprefix(f"<{choices}>: "))
    yield from _entry("--help, -h", "", "Print this help and exit.")
    if arguments:
        yield from ("", "Arguments:", *_entry(arguments, ""))


def _form(flag: flags.Flag) -> str:
    """How a flag is written on the command line."""
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
    """Lines for every key, with its resolved value and its comment."""
    path = Path(values["config"].config_filename)
    found, known = comments(path), dict(leaves(config))
    yield f"Configuration {path}, with the preset and the overrides applied:"
    for key in in_order(known, found):
        declared = allowed(key)
        words = (f"Expects {declared.words}.",) if declared else ()
        yield from _entry(f"config.{key} = {known[key]!r}", "", *comment_of(key, found), *words)


# ------------------------------------------------------------------------------------ exit statuses


def shown(message: object) -> str:
    """A message as the terminal may show it: printable, and not too long."""
    return escape_unprintable(truncate(str(message)))


class ShownFormatter(logging.Formatter):
    """Formats log records for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as `shown` shows it."""
        return shown(super().format(record))


def _configure_logging() -> None:
    """Print warnings and errors of all loggers as `shown`.

    A handler of the root logger keeps other packages from adding one of their own, as
    `logging.warning` does where there is none.
    """
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING)
        root.addHandler(handler)
    for handler in root.handlers:
        handler.setFormatter(ShownFormatter())


def command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command: print user errors without a traceback and exit with status 2.

    A command that a signal ended exits with 75 (`lattec_jax.runtime.preemption`), one that Ctrl-C
    ended with 130.
    """
    _configure_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths that are no text, as standard error does
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv)
    except UserError as error:
        print(f"error: {shown(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output has gone, as `| head` goes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE and (
            error.errno not in _NOT_USABLE or error.filename is None
        ):
            raise
        print(f"error: {shown(error)}. Fix this; the same command continues", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        reason = f" ({interrupt})" if str(interrupt) else ""
        print(f"interrupted{reason}; the same command continues", file=sys.stderr)
        sys.exit(STATUS if isinstance(interrupt, Terminated) else 130)
