"""Signals that end a run, and the exit statuses of a command."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from lattec_jax.runtime.cli import command
from lattec_jax.runtime.preemption import PreemptionHandler, Terminated, terminating


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_before_training_a_signal_ends_the_process_with_75(number, capsys):
    before = signal.getsignal(number)

    def main(argv):
        with terminating():
            send(number)
            raise AssertionError("not reached")

    with pytest.raises(SystemExit) as ended:
        command(main)
    assert ended.value.code == 75
    assert f"interrupted ({number.name}); the same command continues" in capsys.readouterr().err
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_within_training_the_step_ends_first(number, status, capsys):
    steps = []

    def main(argv):
        with terminating(), PreemptionHandler() as signals:
            for step in range(9):
                if step == 3:
                    send(number)
                steps.append(step)
                if signals.requested():
                    break

    with pytest.raises(SystemExit) as ended:
        command(main)
    assert (ended.value.code, steps) == (status, [0, 1, 2, 3])
    assert "the last step is saved); the same command continues" in capsys.readouterr().err


def test_a_second_ctrl_c_does_not_wait_and_a_second_sigterm_does():
    with pytest.raises(Terminated), PreemptionHandler() as signals:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert signals.requested()
    reached = []
    with pytest.raises(KeyboardInterrupt), PreemptionHandler():
        send(signal.SIGINT)
        reached.append(1)
        send(signal.SIGINT)
        reached.append(2)
    assert reached == [1]


def test_an_error_of_the_step_is_not_hidden_by_a_signal():
    with pytest.raises(ValueError, match="mine"), PreemptionHandler():
        send(signal.SIGTERM)
        raise ValueError("mine")


def test_other_threads_go_without_handlers():
    found = []

    def loop() -> None:
        with PreemptionHandler() as signals:
            found.append(signals.requested())

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_reader_that_has_gone_is_no_error_of_ours():
    code = (
        "from lattec_jax.runtime.cli import command\n"
        "command(lambda argv: [print('x' * 99, flush=True) for _ in range(99999)])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_place_that_cannot_be_written_is_said_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train"])

    def fail(number: int):
        def main(argv):
            raise OSError(number, os.strerror(number), "runs/x/metrics.jsonl")

        return main

    with pytest.raises(SystemExit) as ended:
        command(fail(errno.ENOSPC))
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert "No space left on device: 'runs/x/metrics.jsonl'" in shown
    assert "the same command continues" in shown

    def defect(argv):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    with pytest.raises(OSError, match="Bad file"):  # a defect of ours keeps its traceback
        command(defect)


class Together:
    """Other processes that hear of a signal of this one in the next step."""

    def __init__(self, theirs: bool) -> None:
        self._told, self._theirs = False, theirs

    def any_process_delayed(self, mine: bool) -> bool:
        told, self._told = self._told, mine
        return told

    def any_process_now(self, mine: bool) -> bool:
        return mine or self._theirs


def test_several_processes_end_when_all_have_heard():
    steps = []
    with pytest.raises(Terminated, match="SIGTERM"), PreemptionHandler(Together(False)) as signals:
        for step in range(9):
            if step == 3:
                send(signal.SIGTERM)
            steps.append(step)
            if signals.requested():
                break
    assert steps == [0, 1, 2, 3, 4]


def test_a_signal_to_another_process_at_the_very_end_ends_this_one_too():
    with pytest.raises(Terminated, match="another process"), PreemptionHandler(Together(True)):
        pass
    with PreemptionHandler(Together(False)):
        pass
