"""ShardGroup: the shards of one model, which live and die together.

In: a way to start the child of a rank, and the socket file that each will make. Out: who is not up yet, who died first.
One rank alone is of no use: the others wait for it in a collective. So they start together and stop together.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from text_generation_launcher.process import Child, stop


class ShardGroup:
    def __init__(self, sockets: Sequence[Path], start_child: Callable[[int], Child], grace_seconds: float) -> None:
        self._sockets = sockets
        self._start_child = start_child
        self._grace_seconds = grace_seconds
        self._children: list[Child] = []

    def start(self) -> None:
        self._remove_sockets()
        self._children = []
        for rank in range(len(self._sockets)):
            self._children.append(self._start_child(rank))

    def missing(self) -> list[int]:
        """Ranks that have not made their socket yet, which they do when they are ready."""
        return [rank for rank, socket in enumerate(self._sockets) if not socket.exists()]

    def first_dead(self) -> Child | None:
        """The one that ended first: the others often die of its death, and it knows why."""
        dead = [child for child in self._children if child.returncode is not None]
        for child in dead:
            child.drain()
        return min(dead, key=lambda child: child.ended_at, default=None)

    def stop(self, hurried: Callable[[], bool]) -> None:
        if not self._children:
            return  # and the sockets, if there are any, are another server's
        stop(self._children, self._grace_seconds, hurried)
        self._children = []
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        for socket in self._sockets:
            socket.unlink(missing_ok=True)
