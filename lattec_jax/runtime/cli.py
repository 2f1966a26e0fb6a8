"""Command lines: flags, `--help` and exit statuses. Imports no JAX.

A command is a module with a docstring (what it does, an example) and a `main(argv)` that parses
its flags with `read`, or with `read_config` if it takes a configuration. Both answer `--help`, so
`main` parses the flags first and only then imports what is slow to import, such as JAX.
"""

from __future__ import annotations

import errno
import io
import itertools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict

from lattec_jax.runtime.config import Define, parse_command_line, parse_flags
from lattec_jax.runtime.config_display import help_entry, help_lines, print_lines
from lattec_jax.runtime.errors import ConfigError, UserError
from lattec_jax.runtime.preemption import EXIT_PREEMPTED, Terminated
from lattec_jax.runtime.text import escape_unprintable, print_escaped, truncate

# No space left, over quota, too large, read-only, not allowed.
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
# The path that the message names is of another kind than expected, does not exist, is too long, has
# links in a circle, or is on a device that fails.
_NOT_USABLE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG,
    errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EPERM, errno.EBUSY, errno.EIO, errno.ESTALE,
)  # fmt: skip
SCRIPT = "lattec-jax"  # the console script, see pyproject.toml
_FORMS = {
    "string": "TEXT",
    "int": "NUMBER",
    "float": "NUMBER",
    "comma separated list of strings": "A,B,...",
}


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
    """Return the flags and the positional arguments of a command that takes no configuration.

    Raise ConfigError for an unknown, missing or wrong flag, or an unexpected positional argument.

    Args:
        argv: the full command line, program name first.
        doc: the command's docstring, for `--help`, which is answered here.
        define: defines the flags.
        required: required flags, each with an example of its value.
        arguments: name of the positional arguments; "": the command takes none.
    """
    required = required or {}
    values = flags.FlagValues()
    define(values)
    if asks_for_help(argv):
        _print_and_exit([*_head(doc), *_flag_lines(values, required, arguments)])
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
    """Return the checked configuration of a command line, and the command's own flags.

    `--help` and `--print_config` are answered here. Arguments and errors are those of `read` and
    `lattec_jax.runtime.config.parse_command_line`.
    """
    required = required or {}

    def define_all(values: flags.FlagValues) -> None:
        define(values)
        flags.DEFINE_boolean(
            "print_config",
            False,
            "Print each value and where it comes from, and exit.",
            flag_values=values,
        )

    if asks_for_help(argv):
        own = flags.FlagValues()
        define_all(own)
        lines = [*_head(doc), *_flag_lines(own, required, "", config=True)]
        given = config_arguments(argv[1:])
        if any(re.match(r"--?config(=|$)", argument) for argument in given):
            lines += ["", *help_lines(parse_command_line([argv[0], *given]))]
        _print_and_exit(lines)
    parsed = parse_command_line(argv, define_all)
    if parsed.flags.print_config:
        _print_and_exit(print_lines(parsed))
    _check_required(parsed.flags, required)
    return parsed.config, parsed.flags


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a command line has `--help` or `-h`, before a "--"."""
    arguments = itertools.takewhile(lambda argument: argument != "--", argv[1:])
    return any(argument in ("-h", "-help", "--help") for argument in arguments)


def _check_required(values: flags.FlagValues, required: Mapping[str, str]) -> None:
    for name, example in required.items():
        if values[name].value in (None, ""):
            raise ConfigError(f"--{name} is missing; for example --{name}={example}")


def config_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the `--config` arguments, including values written as a separate argument."""
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


def as_invoked(text: str) -> str:
    """Return a text with the commands in it as the user starts them.

    They are written `python -m PACKAGE.NAME`. In a process of the console script they become
    `lattec-jax NAME`.
    """
    if os.path.basename(sys.argv[0]) != SCRIPT:
        return text
    pattern = r"python -m (?:lattec_jax|captioning|convert)\b(?:(\.)(?=\w))?"
    return re.sub(pattern, lambda found: f"{SCRIPT} " if found[1] else SCRIPT, text)


def print_next(command_line: str) -> None:
    """Print the command that a user runs after this one."""
    print_escaped(f"next: {as_invoked(command_line)}")


def _print_and_exit(lines: Iterable[str]) -> NoReturn:
    print(as_invoked("\n".join(lines)), flush=True)
    sys.exit(0)


def _head(doc: str | None) -> list[str]:
    return [(doc or "").strip(), "", "Flags:"]


def _flag_lines(
    values: flags.FlagValues, required: Mapping[str, str], arguments: str, config: bool = False
) -> Iterator[str]:
    """Yield lines for each flag, with default and description, and for positional arguments."""
    if config:
        yield from help_entry(
            "--config=FILE[:preset=NAME,method=NAME]",
            "required; for example configs/demo.py",
            "Configuration file, packaged or your own, optionally with a preset (paper or "
            "released_code) and a method. --config=FILE --help lists all keys.",
        )
        yield from help_entry(
            "--config.KEY=VALUE", "", "Override a value of the configuration; can be repeated."
        )
    for name in values:
        flag = values[name]
        note = f"default: {_default(flag)}"
        if name in required:
            note = f"required; for example {required[name]}"
        choices = "|".join(getattr(flag.parser, "enum_values", ()))
        kind = flag.flag_type()
        form = f"--{flag.name}={choices or _FORMS.get(kind, kind)}"
        if kind == "bool":
            form = f"--[no]{flag.name}"
        yield from help_entry(form, note, flag.help.removeprefix(f"<{choices}>: "))
    yield from help_entry("--help, -h", "", "Print this help and exit.")
    if arguments:
        yield from ("", "Arguments:", *help_entry(arguments, ""))


def _default(flag: flags.Flag) -> str:
    if flag.default in (None, "", []):
        return "not set"
    if isinstance(flag.default, list):
        return ",".join(flag.default)
    return str(flag.default).lower() if flag.boolean else str(flag.default)


# ------------------------------------------------------------------------------------ exit statuses


def shown(message: object) -> str:
    """Return a message as a terminal may show it: printable, and not too long."""
    return escape_unprintable(truncate(str(message)))


class _ShownFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(f"{record.levelname.lower()}: {super().format(record)}")


def command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command: print user errors without a traceback and exit with status 2.

    The status is 75 after a termination signal (`lattec_jax.runtime.preemption`), 130 after Ctrl-C.
    """
    # With a handler at the root logger, `logging.warning` of other packages adds none of its own.
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING)
        root.addHandler(handler)
    for handler in root.handlers:
        handler.setFormatter(_ShownFormatter())
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths may not be valid text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv)
    except UserError as error:
        print(f"error: {as_invoked(shown(error))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output has closed it, such as `| head`
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
        sys.exit(EXIT_PREEMPTED if isinstance(interrupt, Terminated) else 130)
