"""PeerReport: what was measured of several servers with one model, and the Markdown tables that show it.

In: Readings (one server, one number of clients) and Starts. Out: a table of speeds, one of what the first server does beside
each other one, one of start-up. Knows nothing of how they were measured.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from table import markdown

SPEED_TITLES = (
    *("server", "clients", "tokens/s", "first token median"),
    *("between tokens median", "p95", "largest", "tokens per event"),
)
RATIO_TITLES = ("beside", "clients", "tokens/s", "first token median", "between tokens median", "p95")
START_TITLES = ("server", "start", "healthy after", "first token after")


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    server: str
    num_clients: int
    tokens_per_second: float
    first_token_seconds: float  # median
    gap_seconds: float  # between the events of an answer, median
    gap_p95_seconds: float
    gap_max_seconds: float
    tokens_per_event: float  # above 1: some tokens came together with the next one

    def cells(self) -> list[str]:
        times = (self.first_token_seconds, self.gap_seconds, self.gap_p95_seconds, self.gap_max_seconds)
        speed = f"{self.tokens_per_second:.1f}"
        return [self.server, str(self.num_clients), speed, *map(_time, times), f"{self.tokens_per_event:.3f}"]


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Seconds since the process began."""

    server: str
    healthy_seconds: float
    first_token_seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """What is known so far; the first server is the one that the others are compared with."""

    model: str
    most_tokens_per_second: float  # that the multiplications allow, on this machine and in this run
    readings: list[Reading] = dataclasses.field(default_factory=list)
    starts: list[Start] = dataclasses.field(default_factory=list)
    agreements: dict[str, float] = dataclasses.field(default_factory=dict)  # by server: of its answers with the first one's

    @property
    def name(self) -> str:
        return Path(self.model).name


def model_report(comparison: Comparison) -> str:
    parts = [markdown(SPEED_TITLES, [reading.cells() for reading in comparison.readings])]
    most = comparison.most_tokens_per_second
    parts.append(f"The multiplications alone, at the speed of large matrices, allow {most:.0f} tokens/s.")
    if ratios := list(_ratios(comparison.readings)):
        parts += ["This server / peer: of tokens/s more is better, of times less.", markdown(RATIO_TITLES, ratios)]
    parts += ["From the start of the process:", markdown(START_TITLES, list(_starts(comparison.starts)))]
    if shares := [f"{server} {share:.0%}" for server, share in list(comparison.agreements.items())[1:]]:
        parts.append(f"Answers the same as this server's, up to the first difference: {', '.join(shares)}.")
    return "\n\n".join(parts)


def _ratios(readings: list[Reading]) -> Iterator[list[str]]:
    first = {reading.num_clients: reading for reading in readings if reading.server == readings[0].server}
    for peer in readings:
        ours = first.get(peer.num_clients)
        if ours is None or ours is peer:
            continue
        ratios = (
            ours.tokens_per_second / peer.tokens_per_second,
            ours.first_token_seconds / peer.first_token_seconds,
            ours.gap_seconds / peer.gap_seconds,
            ours.gap_p95_seconds / peer.gap_p95_seconds,
        )
        yield [peer.server, str(peer.num_clients), *(f"{ratio:.2f}" for ratio in ratios)]


def _starts(starts: list[Start]) -> Iterator[list[str]]:
    for index, start in enumerate(starts):
        number = 1 + sum(earlier.server == start.server for earlier in starts[:index])
        yield [start.server, str(number), f"{start.healthy_seconds:.1f} s", f"{start.first_token_seconds:.1f} s"]


def _time(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
