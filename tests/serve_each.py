"""Runs `text-generation-server` once for each command line on standard input, all at once, and prints how each ended.

The libraries are imported once and the processes forked from there: what takes seconds a command is paid once.
"""

import json
import os
import sys
import tempfile
from typing import TextIO

import text_generation_server.runner
import text_generation_server.service  # noqa: F401
from text_generation_server.__main__ import main


def start(argv: list[str]) -> tuple[int, TextIO]:
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process that writes to it
    if (process_id := os.fork()) == 0:
        os.dup2(errors.fileno(), 2)
        sys.argv = ["text-generation-server", *argv]
        try:
            main()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        os._exit(99)  # main ends the process itself
    return process_id, errors


def outcome(process_id: int, errors: TextIO) -> tuple[int, str]:
    _, status = os.waitpid(process_id, 0)
    errors.seek(0)
    return os.waitstatus_to_exitcode(status), errors.read()


started = {name: start(argv) for name, argv in json.load(sys.stdin).items()}
print(json.dumps({name: outcome(*process) for name, process in started.items()}))
