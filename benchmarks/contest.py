"""Contest: several servers of one model have their turns, each alone on the machine: started, checked, and put under load.

In: Contestants, prompts. Out: a Comparison, which grows as they go; what is known already is shown on standard error.
"""

import asyncio
import dataclasses
import itertools
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from completions_api import agreement, complete
from load import Answer, Load
from peer_report import Comparison, Reading, Start
from peer_servers import Contestant
from prompts import Prompts
from server_process import ServerProcess
from table import median, percentile

WARM_UP_TOKENS = 4  # of each client, before each window
MIN_REQUESTS = 8  # of all clients together, so that the median of few is one
CHECKED_ANSWERS, CHECKED_TOKENS = 4, 16
# Of the checked answers; below, a server computes something else than the first one. Roundings of bfloat16, which each makes in
# its own places, let near ties of random prompts fall otherwise.
MIN_AGREEMENT = {"float32": 0.5, "bfloat16": 0.25}


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    clients: list[int]
    num_rounds: int
    new_tokens: int
    num_starts: int
    log_folder: Path | None
    dtype: str


class Contest:
    def __init__(self, model: str, most_tokens_per_second: float, plan: Plan) -> None:
        self.comparison = Comparison(model, most_tokens_per_second)
        self._plan = plan
        self._answers: list[str] = []  # of the first server

    def turn(self, contestant: Contestant, prompts: Prompts) -> None:
        """
        Raises:
            RuntimeError, OSError, aiohttp.ClientError: the server does not start, computes something else, or gives up. What
                was measured before is kept.
        """
        for number in range(1, self._plan.num_starts + 1):
            with contestant.make_server() as server:
                try:
                    self._start(contestant, server, prompts)
                    if number == self._plan.num_starts:
                        self._check(contestant, server, prompts)
                        self._read_all(contestant, server, prompts)
                finally:
                    self._keep_log(server, f"{self.comparison.name} {contestant.name} {number}.log")

    def _start(self, contestant: Contestant, server: ServerProcess, prompts: Prompts) -> None:
        """The whole answer is waited for; its first token counts."""
        load = Load(server.url, iter(prompts), self._plan.new_tokens, contestant.api)
        (answer,) = asyncio.run(load.run(num_clients=1, num_rounds=1))
        start = Start(contestant.name, server.healthy_seconds, answer.token_seconds[0] - server.start_seconds)
        self.comparison.starts.append(start)
        _show(start)

    def _check(self, contestant: Contestant, server: ServerProcess, prompts: Prompts) -> None:
        """Some answers at once, as text."""
        with ThreadPoolExecutor(CHECKED_ANSWERS) as pool:
            texts = itertools.islice(prompts, CHECKED_ANSWERS)
            answers = list(pool.map(lambda text: complete(server.url, contestant.api, text, CHECKED_TOKENS), texts))
        self._answers = self._answers or answers
        share = agreement(self._answers, answers)
        self.comparison.agreements[contestant.name] = share
        if share < MIN_AGREEMENT[self._plan.dtype]:
            raise RuntimeError(f"its answers are not the first server's: {answers[0]!r} for {self._answers[0]!r}")

    def _read_all(self, contestant: Contestant, server: ServerProcess, prompts: Prompts) -> None:
        texts = iter(prompts)
        for num_clients in self._plan.clients:
            asyncio.run(Load(server.url, texts, WARM_UP_TOKENS, contestant.api).run(num_clients, 1))
            load = Load(server.url, texts, self._plan.new_tokens, contestant.api)
            num_rounds = max(self._plan.num_rounds, -(-MIN_REQUESTS // num_clients))
            start_seconds = time.perf_counter()
            answers = asyncio.run(load.run(num_clients, num_rounds))
            reading = self._reading(contestant.name, num_clients, answers, time.perf_counter() - start_seconds)
            self.comparison.readings.append(reading)
            _show(reading)

    def _reading(self, server: str, num_clients: int, answers: list[Answer], wall_seconds: float) -> Reading:
        gaps = [gap for answer in answers for gap in answer.gap_seconds]
        num_tokens = len(answers) * self._plan.new_tokens
        return Reading(
            server=server,
            num_clients=num_clients,
            tokens_per_second=num_tokens / wall_seconds,
            first_token_seconds=median([answer.first_token_seconds for answer in answers]),
            gap_seconds=median(gaps),
            gap_p95_seconds=percentile(gaps, 0.95),
            gap_max_seconds=max(gaps),
            tokens_per_event=num_tokens / sum(len(answer.token_seconds) for answer in answers),
        )

    def _keep_log(self, server: ServerProcess, name: str) -> None:
        if self._plan.log_folder:
            self._plan.log_folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(server.log, self._plan.log_folder / name)


def _show(result: Start | Reading) -> None:
    print(*dataclasses.astuple(result), file=sys.stderr, flush=True)
