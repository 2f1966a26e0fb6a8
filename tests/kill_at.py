"""Run a module that is killed (SIGKILL) before its n-th file operation below a directory.

    python -m tests.kill_at NUMBER ROOT LOG MODULE [ARGUMENT ...]

0: it is not killed. LOG receives a line for each operation: opening, moving, deleting and making
files and directories. So moments can be chosen without a clock.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable

EVENTS = frozenset(
    ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.listdir")
)


def make_hook(number: int, root: str, log: int) -> Callable[[str, tuple], None]:
    """An audit hook that counts operations and kills the process before the given one."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in EVENTS or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        # Names below a directory's descriptor, as shutil.rmtree deletes them, seem to be relative
        # to the working directory, which is `root` in the tests.
        if not path.startswith(root):
            return
        count += 1
        os.write(log, f"{count} {event} {path[len(root) :]}\n".encode(errors="replace"))
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


if __name__ == "__main__":
    number, root, log, module, *rest = sys.argv[1:]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sys.argv = [module, *rest]
    sys.addaudithook(make_hook(int(number), root, descriptor))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
