"""Mutations of valid files, and limits on time and memory for reading one.

The bytes of a file are changed and, if it is JSON, JSON lines or .safetensors (with a JSON header),
also single values. `targets_*.py` contain the readers of each format.
"""

from __future__ import annotations

import copy
import json
import signal
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st


class Target(NamedTuple):
    """A file format under test."""

    valid: bytes
    suffix: str  # of a file's name
    read: Callable[[Path], object]  # as the commands do; raises only UserError


MAX_SECONDS = 30
MAX_BYTES = 2 * 2**30  # of additional memory

DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]
ODD_VALUES = [
    None, True, False, -1, 0, 1, 2, 0.5, 10**12, -(10**12), 2**63, 10**400, 1e308, -1e308,
    float("nan"), float("inf"), "", " ", "x", "1", "nan", "\ud83d", "\x1b[31m\x07", "\0", "../..",
    "/etc/hostname", "http://localhost:9/x", "x" * 200_000, [], [[]], [None], {}, {"a": 1},
    list(range(3000)), DEEP,
]  # fmt: skip


def _nodes(content: Any) -> list[tuple[Any, Any]]:
    """Every container and key of JSON content whose value can be replaced."""
    found, left = [], [content]
    while left:
        item = left.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        for key in keys:
            found.append((item, key))
            if isinstance(item[key], (dict, list)):
                left.append(item[key])
    return found


@st.composite
def _changed_json(draw: st.DrawFn, content: Any) -> str:
    """JSON content with one to three values replaced, removed, added or renamed."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        nodes = _nodes(content) if isinstance(content, (dict, list)) else []
        odd = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        if not nodes or draw(st.integers(0, 40)) == 0:
            content = odd
            continue
        container, key = nodes[draw(st.integers(0, len(nodes) - 1))]
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "swap"]))
        if change == "replace":
            container[key] = odd
        elif change == "remove":
            del container[key]
        elif change == "swap":
            other, its_key = nodes[draw(st.integers(0, len(nodes) - 1))]
            container[key] = copy.deepcopy(other.get(its_key) if isinstance(other, dict) else odd)
        elif isinstance(container, dict):
            container[draw(st.sampled_from(["", "a", "auto_map", "__class__", "\ud83d"]))] = odd
        else:
            container.insert(0, odd)
    return json.dumps(content, ensure_ascii=draw(st.booleans()))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@st.composite
def _changed_values(draw: st.DrawFn, content: bytes) -> bytes:
    """The file with changed JSON values; other files are returned unchanged."""
    if content[8:9] == b"{":  # .safetensors: the length of the header, the header, the tensors
        length = struct.unpack("<Q", content[:8])[0]
        header = _encoded(draw(_changed_json(json.loads(content[8 : 8 + length]))))
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    try:
        return _encoded(draw(_changed_json(json.loads(content))))
    except ValueError:
        pass
    lines = content.splitlines(keepends=True)
    number = draw(st.integers(0, max(0, len(lines) - 1)))
    with suppress(ValueError, IndexError):
        lines[number] = _encoded(draw(_changed_json(json.loads(lines[number])))) + b"\n"
    return b"".join(lines)


@st.composite
def _changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The file with one to four parts overwritten, removed, repeated or inserted."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        stop = min(len(data), start + draw(st.sampled_from([1, 1, 1, 2, 4, 8, 50, 2000])))
        change = draw(st.sampled_from(["flip", "set", "set", "cut", "repeat", "insert", "end"]))
        if change == "flip" and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif change == "set":
            fill = draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\n", b",", b'"', b"9", b"["]))
            data[start:stop] = fill * (stop - start)
        elif change == "cut":
            del data[start:stop]
        elif change == "repeat":
            data[start:start] = data[start:stop] * draw(st.sampled_from([1, 1, 2, 100]))
        elif change == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=20))
        elif change == "end":
            del data[start:]
    return bytes(data)


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Changed copies of a valid file."""
    return st.one_of(_changed_bytes(content), _changed_values(content))


class TookTooLong(BaseException):
    """Reading one file took more than `MAX_SECONDS`; no handler in the code may catch this."""


class Limits:
    """Limits a block to 30 seconds and 2 GB of memory. `exceeded` records a violation, even if the
    code caught the resulting error."""

    def __enter__(self) -> None:
        self.exceeded = ""
        self._before = _peak_memory(reset=True)
        self._handler = signal.signal(signal.SIGALRM, self._stop)
        signal.alarm(MAX_SECONDS)

    def __exit__(self, *error: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self._handler)
        if _peak_memory() - self._before > MAX_BYTES:
            self.exceeded = f"over {MAX_BYTES / 2**30:g} GB"

    def _stop(self, *_: object) -> None:
        self.exceeded = f"over {MAX_SECONDS} s"
        raise TookTooLong


def _peak_memory(reset: bool = False) -> int:
    """The largest memory in bytes that this process had since the last reset (Linux)."""
    if reset:
        with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
