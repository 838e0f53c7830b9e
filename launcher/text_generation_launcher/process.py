"""Child: one program that the launcher runs, its lines relayed, its end made sure of.

In: a name, a command line, an environment. Out: its lines on our own streams behind its name, its exit, its last words.
Knows nothing of shards and routers.
"""

import collections
import contextlib
import ctypes
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TextIO

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
NUM_KEPT_LINES = 100
PROGRESS_SECONDS = 2.0  # a progress bar redraws itself ten times a second; a log wants a line now and then
DRAIN_SECONDS = 1.0  # a grandchild may hold the pipe open; do not wait for it longer
KILL_SECONDS = 10.0  # a process inside a driver call survives SIGKILL until the call is over
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class LaunchError(Exception):
    """Why the launcher cannot go on, in one line for the person who started it."""


class Child:
    """Start it in the main thread: Linux sends the death signal when the *thread* that forked ends."""

    def __init__(self, name: str, argv: Sequence[str], environment: Mapping[str, str], json_output: bool) -> None:
        self.name = name
        self.stdout_lines: collections.deque[str] = collections.deque(maxlen=NUM_KEPT_LINES)
        self.stderr_lines: collections.deque[str] = collections.deque(maxlen=NUM_KEPT_LINES)
        self.ended_at = float("inf")  # when its standard error closed, on time.monotonic()'s clock
        self._json_output = json_output
        self._process = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,  # Ctrl-C in the terminal reaches the launcher alone, which stops its children in order
            preexec_fn=_die_with_parent(os.getpid()),
        )
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to whatever is left of it and of its own children, then wait for its last lines."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS)
        self.drain()

    def drain(self) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))

    def describe_end(self) -> str:
        """`shard-1 ended with exit code 1: Error: ...`, for a child that has ended."""
        self.drain()
        lines = [_message(line) for line in (*self.stdout_lines, *self.stderr_lines) if line.strip()]
        errors = [line for line in lines if "Error: " in line]
        words = errors[-1] if errors else f"its last line was: {lines[-1]}" if lines else "it printed nothing"
        return f"{self.name} ended with {_describe_exit(self._process.returncode)}: {words}"

    def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        self._relay(self._process.stdout, sys.stdout, self.stdout_lines)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        self._relay(self._process.stderr, sys.stderr, self.stderr_lines)
        self.ended_at = time.monotonic()

    def _relay(self, pipe: IO[bytes], sink: TextIO, kept: collections.deque[str]) -> None:
        next_progress = 0.0
        for text in io.TextIOWrapper(pipe, encoding="utf-8", errors="replace", newline=""):
            line = text.rstrip("\r\n")
            if text.endswith("\r"):  # a progress bar that will be drawn over
                if not line.strip() or time.monotonic() < next_progress:
                    continue
                next_progress = time.monotonic() + PROGRESS_SECONDS
            else:
                kept.append(line)
            self._emit(line, sink)

    def _emit(self, line: str, sink: TextIO) -> None:
        if self._json_output and not line.startswith("{"):
            log.info("%s | %s", self.name, line)
            return
        # Whoever read our output may be gone; the child must be read all the same, or it would wait for us for ever.
        with contextlib.suppress(OSError, ValueError):
            sink.write(line + "\n" if self._json_output else f"{self.name} | {line}\n")
            sink.flush()


def stop(children: Sequence[Child], grace_seconds: float, hurried: Callable[[], bool]) -> None:
    """SIGTERM to all at once; SIGKILL to those still there when the grace is over or someone is in a hurry."""
    deadline = time.monotonic() + grace_seconds
    for child in children:
        child.terminate()
    while any(child.returncode is None for child in children) and time.monotonic() < deadline and not hurried():
        time.sleep(POLL_SECONDS / 2)
    for child in children:
        if child.returncode is None:
            log.warning("%s did not stop by itself and is killed", child.name)
        child.kill()


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """What a child does before it becomes its program: ask for SIGTERM at the launcher's death, however that comes."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # before the fork: the child may load nothing

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return ask


def _message(line: str) -> str:
    """A log line without its time and level, where it is an error meant for a person."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        line = str(json.loads(line)["message"])
    meant = re.search(r"\bError: .*", line)
    return meant.group() if meant else line.strip()


def _describe_exit(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    hint = ", as when the machine has no memory left" if returncode == -signal.SIGKILL else ""
    return f"signal {signal.Signals(-returncode).name}{hint}"
