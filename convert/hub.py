"""Fetch OpenCLIP's weights from the Hugging Face hub.

Files are read from the hub's cache or downloaded into it. The `.safetensors` file and its
configuration suffice; torch is not needed. The hub's address is that of huggingface_hub, which the
user may set in the environment; files that come with weights cannot change it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lattec_jax.runtime.errors import WeightsError, short_repr
from lattec_jax.runtime.text import escape_unprintable, truncate

PREFIXES = ("hf:", "hf-hub:")  # the second is open_clip's
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)  # a branch, a tag or a commit


def is_hub_name(weights: str) -> bool:
    """Return whether `weights` has the form `hf:organization/name`."""
    return weights.startswith(PREFIXES)


def fetch(weights: str) -> Path:
    """Fetch `hf:organization/name` (or `...@revision`); return its weights file.

    The configuration is beside it.

    Raises:
        WeightsError: it is not in the cache and cannot be downloaded, or is not for open_clip.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, at, revision = weights.partition(":")[2].partition("@")
    if at and (".." in revision or not _REVISION.fullmatch(revision)):
        raise WeightsError(
            f"expected a branch, a tag or a commit after the @, found {short_repr(revision)}"
        )
    try:
        config = _download(repository, CONFIG_FILE, revision or None)
    except LocalEntryNotFoundError as error:
        raise _not_reachable(repository, error) from error
    except EntryNotFoundError as error:
        raise WeightsError(
            f"the hub's {repository} has no {CONFIG_FILE}, so it is not a model of open_clip. "
            "Expected a repository with that file and open_clip_model.safetensors, such as "
            "hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K; OpenAI's weights are the tag "
            "ViT-B-32-quickgelu:openai"
        ) from error
    unreachable = None
    for name in WEIGHTS_FILES:
        try:
            # From the commit of the configuration, even if the branch has moved meanwhile.
            return _download(repository, name, config.parent.name)
        except LocalEntryNotFoundError as error:
            unreachable = error
        except EntryNotFoundError:
            continue
    if unreachable is not None:
        raise _not_reachable(repository, unreachable) from unreachable
    raise WeightsError(
        f"the hub's {repository} has neither {' nor '.join(WEIGHTS_FILES)}; choose another "
        "repository, or download one of its weights files and pass that"
    )


def fetch_beside(weights: str, commit: str, names: Iterable[str]) -> None:
    """Download further files of the repository `weights` at a commit, if they exist."""
    from huggingface_hub.errors import EntryNotFoundError

    repository = weights.partition(":")[2].partition("@")[0]
    for name in names:
        # Missing, or not in the cache and offline: the reader of the files reports it.
        with suppress(EntryNotFoundError):
            _download(repository, name, commit)


def _download(repository: str, name: str, revision: str | None) -> Path:
    """Fetch a file from the cache or the hub. Raises EntryNotFoundError if it does not exist."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of httpx or httpx2
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except HFValidationError as error:
        raise WeightsError(
            f"expected hf:organization/name, found {short_repr(repository)}: {first_line(error)}"
        ) from error
    except GatedRepoError as error:
        raise WeightsError(
            f"the hub's {repository} is gated: accept its terms at "
            f"https://huggingface.co/{repository} and log in with hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"the hub has no repository {repository}, or it is private (then log in with hf auth "
            "login); check the name, for example hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"the hub's {repository} has no revision {revision!r}") from error
    except (LocalEntryNotFoundError, RemoteEntryNotFoundError):
        raise
    except (HTTPError, OSError) as error:  # other statuses, a broken connection, a full disk
        raise WeightsError(f"{name} of the hub's {repository}: {first_line(error)}") from error


def ways_without_network(repository: str) -> str:
    """Return how to copy weights of the hub to a machine without a network."""
    files = f"{CONFIG_FILE} {WEIGHTS_FILES[0]}"
    return (
        "Without a network here there are three ways, each on another machine: "
        f"(1) hf download {repository} {files}, copy its cache (~/.cache/huggingface) and set "
        f"HF_HOME to the copy; (2) the same with --local-dir=DIR, copy DIR and pass "
        f"DIR/{WEIGHTS_FILES[0]}; (3) python -m convert.openclip_to_flax "
        f"--pretrained=hf:{repository} --out=DIR, copy DIR and pass it"
    )


def _not_reachable(repository: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"the weights hf:{repository} are not in the hub's cache and cannot be downloaded: "
        f"{first_line(error)} {ways_without_network(repository)}"
    )


def first_line(error: Exception) -> str:
    """Return the first line of a message, bounded and printable."""
    lines = str(error).strip().splitlines()
    return escape_unprintable(truncate(lines[0], 500)) if lines else type(error).__name__
