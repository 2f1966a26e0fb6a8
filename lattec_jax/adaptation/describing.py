"""Where the descriptions of an adaptation come from: nowhere, an engine, or a function.

A language model needs PyTorch or a server. It is run by `python -m captioning.describe`, in a
process of its own; a function is called in this process. The pseudo-labels before are made in a
process of their own: JAX would take most of the memory of a GPU that the language model or the
function needs. Imports no JAX.
"""

from __future__ import annotations

import codecs
import hashlib
import http.client
import os
import re
import selectors
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

from ml_collections import ConfigDict
from PIL import Image

from lattec_jax.runtime import errors
from lattec_jax.runtime.api_key import KeyFilter, read_api_key
from lattec_jax.runtime.errors import ConfigError, EngineError, did_you_mean, short_repr
from lattec_jax.runtime.extras import install_command
from lattec_jax.runtime.safe_read import parse_json
from lattec_jax.runtime.text import sanitize, truncate

DescribeImages = Callable[[list[Image.Image]], Sequence[str]]
ENGINES = ("pixels", "llava", "openai")
# Engines that run in another process: the package that each needs most, and the extra with it.
_CHILD_PROCESS_ENGINES = {"llava": ("transformers", "captioning"), "openai": ("openai", "openai")}
_MODEL_LIST_TIMEOUT_S = 20
_MAX_MODEL_LIST_BYTES = 2**20


class Describer(NamedTuple):
    """A source of descriptions."""

    settings: dict[str, Any]  # of the configuration
    function: DescribeImages | None = None
    identity: str = ""  # of the function

    @property
    def engine(self) -> str:
        """`config.descriptions.engine`; "" without descriptions."""
        return self.settings.get("descriptions.engine", "")


def make_describer(descriptions: str | DescribeImages | None, domain: str) -> Describer:
    """Return the source of descriptions that `adapt` was asked for.

    Args:
        descriptions: None, the name of an engine, the address of a server, or a function.
        domain: what the images show, for the prompts.

    Raises:
        ConfigError: any other value.
    """
    prompts = _prompts(domain)
    if descriptions is None:
        return Describer({**prompts, "method.texts": ("class",)})
    if isinstance(descriptions, str):
        if re.match(r"https?://", descriptions):
            address = descriptions.rstrip("/")
            if re.fullmatch(r"https?://[^/]+", address):
                address += "/v1"
            prompts |= {"descriptions.openai.base_url": address}
            descriptions = "openai"
        if descriptions not in ENGINES:
            raise ConfigError(
                f"descriptions: expected one of {', '.join(ENGINES)}, the address of a server such "
                f"as http://localhost:8000/v1 or, in Python, a function, found "
                f"{short_repr(descriptions)}. "
                f"{did_you_mean(descriptions, ENGINES)}".rstrip()
            )
        return Describer({**prompts, "descriptions.engine": descriptions})
    if not callable(descriptions):
        raise ConfigError(
            "descriptions: expected None, the name of an engine, or a function of a list of "
            f"images, found {type(descriptions).__name__}"
        )
    name = getattr(descriptions, "__name__", type(descriptions).__name__)
    engine = f"function-{re.sub(r'[^A-Za-z0-9_.-]+', '', name)[:60] or 'unnamed'}"
    identity = str(getattr(descriptions, "identity", ""))
    if name == "<lambda>" and not identity:  # two of them would be stored under one name
        raise ConfigError(
            "descriptions: expected a function with a name, under which its answers are stored, "
            "found a lambda; write it with def, or set its attribute `identity`"
        )
    if identity:  # another identity is another configuration, which a run in progress refuses
        engine += f"-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    return Describer({**prompts, "descriptions.engine": engine}, descriptions, identity)


def _prompts(domain: str) -> dict[str, Any]:
    """Return the paper's prompts, "[domain]" being the singular in both."""
    one, many = (domain, domain) if domain else ("object", "objects")
    return {
        "descriptions.prompts.image": (
            f"Describe the {one} in the photo concisely, using less than 20 words."
        ),
        "descriptions.prompts.group": (
            f"Describe the common visual attributes of the {many} in all the photos concisely, in "
            "fewer than 20 words."
        ),
    }


def describe(
    config: ConfigDict, describer: Describer, arguments: Sequence[str], progress: bool
) -> None:
    """Write the descriptions that a function or a language model has to make.

    Descriptions by `pixels` are made by the training run itself.

    Args:
        config: a checked configuration.
        describer: see `make_describer`.
        arguments: the `--config...` arguments that give the configuration.
        progress: whether other processes print, and show progress bars.

    Raises:
        UserError: see `captioning.describe.describe`.
    """
    from lattec_jax import train
    from lattec_jax.methods import make_method

    kinds = make_method(config.method).description_kinds
    if not kinds:
        return
    if describer.function is not None:
        _run("lattec_jax.pseudo_label", arguments, progress)
        function = (describer.function, describer.identity)
        train.describe(config, kinds, function=function)
    elif config.descriptions.engine in _CHILD_PROCESS_ENGINES:
        _check_installed(config.descriptions.engine)  # before the pseudo-labels, which take longer
        _run("lattec_jax.pseudo_label", arguments, progress)
        _run("captioning.describe", [*arguments, f"--kind={','.join(kinds)}"], progress)


def _check_installed(engine: str) -> None:
    package, extra = _CHILD_PROCESS_ENGINES[engine]
    if find_spec(package) is None:
        raise EngineError(
            f"descriptions by {engine} need the package {package}, which is not installed: "
            f"{install_command(extra)}"
        )


# Runs in the child process, which writes the message of an error for the user to a file.
_CHILD = """
import importlib, sys
from pathlib import Path
from lattec_jax.runtime.errors import UserError
from lattec_jax.runtime.preemption import terminating
from lattec_jax.runtime.progress import hidden
message, progress, module, *arguments = sys.argv[1:]
try:
    with hidden(progress == "False"), terminating():
        importlib.import_module(module).run([module, *arguments])
except UserError as error:
    names = [c.__name__ for c in type(error).__mro__ if c.__module__ == UserError.__module__]
    text = names[0] + "\\n" + str(error)
    Path(message).write_text(text, encoding="utf-8", errors="backslashreplace")
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)
"""


def _run(module: str, arguments: Sequence[str], progress: bool) -> None:
    """Call the function `run` of a command's module in a process of its own.

    Its output goes where that of this process goes; the cell of a notebook gets it piece by piece.

    Raises:
        UserError: the command's own, with its class and message.
        EngineError: it ended otherwise.
    """
    inherited = sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__
    stdout, stderr = (None if inherit else subprocess.PIPE for inherit in inherited)
    with tempfile.TemporaryDirectory() as folder:
        message = Path(folder) / "error.txt"
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(message), str(progress), module, *arguments],
            stdout=stdout,
            stderr=stderr,
        )
        pipes = [(process.stdout, sys.stdout), (process.stderr, sys.stderr)]
        try:
            _copy([(pipe, target) for pipe, target in pipes if pipe is not None])
            status = process.wait()
        finally:  # also after Ctrl-C; what is described is stored
            if process.poll() is None:
                process.terminate()
                process.wait()
            for pipe, _ in pipes:
                if pipe is not None:
                    pipe.close()
        if message.is_file():
            kind, _, text = message.read_text(encoding="utf-8").partition("\n")
            raise getattr(errors, kind)(text)
    if status:
        raise EngineError(
            f"python -m {module} ended with status {status} (its messages are above; a negative "
            "status is a signal, and -9 often means too little memory). The same call continues"
        )


def _copy(pipes: Sequence[tuple[IO[bytes], TextIO]]) -> None:
    """Write what comes from pipes, piece by piece, until all of them end."""
    with selectors.DefaultSelector() as selector:
        for pipe, target in pipes:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            selector.register(pipe, selectors.EVENT_READ, (decoder, target))
        while selector.get_map():
            for key, _ in selector.select():
                piece = os.read(key.fd, 4096)
                decoder, target = key.data
                target.write(decoder.decode(piece, final=not piece))
                if not piece:
                    selector.unregister(key.fileobj)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuse redirects: the key would be sent to another server."""

    def redirect_request(
        self, req: object, fp: object, code: int, msg: str, headers: object, newurl: str
    ) -> None:
        """Return no request, so that the redirect is an error."""


def served_model(base_url: str, key_variable: str) -> str:
    """Return the model of a server that has only one.

    Raises:
        ConfigError: it has several.
        EngineError: it does not answer, the key cannot be sent, or the model's name contains it.
    """
    request = urllib.request.Request(f"{base_url.rstrip('/')}/models")
    key = read_api_key(key_variable)
    known = KeyFilter(key)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    advice = "name the model (--describe_model, or settings={'descriptions.openai.model': ...})"
    try:
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=_MODEL_LIST_TIMEOUT_S) as response:
            content = parse_json(response.read(_MAX_MODEL_LIST_BYTES))
        names = [sanitize(str(model["id"])) for model in content["data"]]
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
        status = getattr(error, "code", None)  # of an HTTPError, whose reason the server chooses
        reason = f"status {status}" if status else truncate(known.mask(str(error)), 200)
        raise EngineError(
            f"the server at {base_url} does not list its models ({reason}); start it, check the "
            f"address, or {advice}"
        ) from None
    if len(names) != 1:
        listed = truncate(known.mask(", ".join(names)), 300)
        raise ConfigError(f"the server at {base_url} has {len(names)} models ({listed}); {advice}")
    if known.contains_key(names[0]):
        raise EngineError(f"the model's name at {base_url} contains the API key; {advice}")
    return names[0]
