"""A stand-in for a shard, a router or a download: `fake_child.py PID_FILE BEHAVIOUR [SOCKET]`. It starts in a few milliseconds.

serve     makes its socket and waits; SIGTERM: removes the socket, exits 0
stubborn  the same, but pays no attention to SIGTERM
refuse    says why on standard error and exits 1 before there is a socket
usage     exits 2, as argparse does
fetch     prints the folder of PID_FILE as soon as it has a file `weights`
"""

import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType


def main() -> None:
    pid_file, behaviour, *socket_paths = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else _leave)
    with open(pid_file, "a") as pids:
        print(Path("/proc/self").readlink(), file=pids)
    if behaviour == "refuse":
        print("loading\nError: the weights are cut short\nbye", file=sys.stderr)
        sys.exit(1)
    if behaviour == "usage":
        sys.exit(2)
    if behaviour == "fetch":
        _fetch(Path(pid_file).parent)
    for path in socket_paths:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
    time.sleep(60)


def _fetch(folder: Path) -> None:
    while not (folder / "weights").exists():
        time.sleep(0.02)
    print(folder)
    sys.exit(0)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    for path in sys.argv[3:]:
        Path(path).unlink(missing_ok=True)
    sys.exit(0)


main()
