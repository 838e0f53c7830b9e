"""Launch: the life of the whole server, from its checks to its last socket file.

checks -> router, so that the port answers -> weights -> shards -> watch, restart what dies -> stop the router, then the
shards.
In: a LauncherConfig, the GPUs, and the commands that start each kind of child. Out: an exit status.
Knows nothing of HTTP or gRPC: a shard is up when its socket file is there, and the router finds the shards by itself.
"""

import collections
import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from text_generation_launcher import download, preflight
from text_generation_launcher.claim import Claim
from text_generation_launcher.config import LauncherConfig
from text_generation_launcher.launch_status import LaunchStatus
from text_generation_launcher.process import POLL_SECONDS, Child, LaunchError, stop
from text_generation_launcher.shard_group import ShardGroup
from text_generation_proto.flags import secrets_to_environment, to_argv
from text_generation_router.config import RouterConfig
from text_generation_server.config import ShardConfig

log = logging.getLogger(__name__)

WAITING_LOG_SECONDS = 10.0
SHARD_GRACE_SECONDS = 5.0  # a shard has nothing to save; this is for its socket file
ROUTER_EXTRA_SECONDS = 5.0  # on top of its own grace period, to cut off what is left and say so
SAME_SIGNAL_SECONDS = 0.3
STARTING = "starting the shards"
USAGE_ERROR = 2  # the exit status of a process that does not understand its command line


def _download_command(config: LauncherConfig) -> list[str]:
    chosen = [] if config.revision is None else ["--revision", config.revision]
    chosen += ["--trust-remote-code"] if config.trust_remote_code else []
    chosen += ["--without-weights"] if config.random_weights else []
    return [sys.executable, "-m", "text_generation_server", "download-weights", config.model_id, *chosen]


def _shard_command(config: ShardConfig) -> list[str]:
    return [sys.executable, "-m", "text_generation_server", "serve", *to_argv(config)]


def _router_command(config: RouterConfig) -> list[str]:
    return [sys.executable, "-m", "text_generation_router", *to_argv(config)]


@dataclasses.dataclass(frozen=True, slots=True)
class Commands:
    """The command line of each child. Tests put small programs here."""

    download: Callable[[LauncherConfig], list[str]] = _download_command
    shard: Callable[[ShardConfig], list[str]] = _shard_command
    router: Callable[[RouterConfig], list[str]] = _router_command


class RestartBudget:
    """At most `max_restarts` within any `window_seconds`."""

    def __init__(self, max_restarts: int, window_seconds: float) -> None:
        self._max_restarts = max_restarts
        self._window_seconds = window_seconds
        self._spent: collections.deque[float] = collections.deque()

    def spend(self, explanation: str) -> None:
        """Raises: LaunchError, with the explanation of this last death, when nothing is left."""
        now = time.monotonic()
        while self._spent and self._spent[0] < now - self._window_seconds:
            self._spent.popleft()
        if len(self._spent) >= self._max_restarts:
            raise LaunchError(f"giving up after {len(self._spent)} restarts (--max-restarts): {explanation}")
        self._spent.append(now)


class Launch:
    def __init__(
        self,
        config: LauncherConfig,
        world_size: int,
        devices: Sequence[str],
        environment: Mapping[str, str],
        commands: Commands,
    ) -> None:
        self._config = config
        self._world_size = world_size
        self._devices = devices
        self._environment = config.child_environment(environment)
        self._commands = commands
        self._folder = Path(config.model_id)
        self._sockets = [
            Path(config.shard_config(rank, world_size, self._folder).socket_path) for rank in range(world_size)
        ]
        self._status = LaunchStatus(Path(config.launch_status_path))
        self._shards = ShardGroup(self._sockets, self._start_shard, SHARD_GRACE_SECONDS)
        self._router: Child | None = None
        self._claim: Claim | None = None
        self._budget = RestartBudget(config.max_restarts, config.restart_window_seconds)
        self._num_stop_requests = 0
        self._last_stop_request = -SAME_SIGNAL_SECONDS
        self._group_is_up = False
        self._was_up = False
        self._group_started_at = self._next_waiting_log = 0.0

    def request_stop(self) -> None:
        """Once: in order. Again, a moment later: at once. Safe in a signal handler.

        Programs such as GNU timeout send one signal to the process and to its group: that arrives twice, and means once.
        """
        now = time.monotonic()
        if now - self._last_stop_request >= SAME_SIGNAL_SECONDS:
            self._num_stop_requests += 1
        self._last_stop_request = now

    def run(self) -> int:
        failure: str | None = None
        try:
            folder = self._check()
            if not self._stopped():
                self._bring_up(folder)
            while not self._stopped():
                self._look_after_shards()
                self._look_after_router()
                time.sleep(POLL_SECONDS)
        except LaunchError as error:
            failure = None if self._stopped() else str(error)  # a download that was stopped has not failed
            self._say_over()
        finally:
            self._stop_all()
        if failure is None:
            log.info("stopped")
            return 0
        log.error("%s", failure)
        return 1

    def _check(self) -> Path | None:
        """Everything that can be known before anything is started, the quickest first. Out: the folder, if it is known."""
        folder = download.local_folder(self._config.model_id)
        if folder is not None:
            preflight.check_folder(folder)
        preflight.check_port(self._config.hostname, self._config.port)
        preflight.check_sockets(self._sockets)
        self._claim = Claim(self._config.shard_uds_path)
        return folder

    def _bring_up(self, folder: Path | None) -> None:
        """The router first: it says how far the rest is."""
        self._status.write(download.first_stage(self._config.model_id, folder) or STARTING, folder)
        self._router = self._start_router()
        if folder is None or download.needs_child(folder):
            folder = download.wait_for_folder(self._start_download, self._stopped, self._hurried, self._look_after_router)
            self._status.write(STARTING, folder)
        self._folder = folder
        if not self._stopped():
            self._start_group()

    def _look_after_shards(self) -> None:
        dead = self._shards.first_dead()
        if dead is None:
            self._note_progress()
            return
        if not self._was_up:
            raise LaunchError(f"the model could not be started: {dead.describe_end()}")
        self._budget.spend(dead.describe_end())
        log.error("%s; all shards are started again", dead.describe_end())
        self._shards.stop(self._hurried)
        if not self._stopped():
            with contextlib.suppress(LaunchError):  # a full disk: what the file said before will do
                self._status.write(f"{STARTING} again", self._folder)
            self._start_group()

    def _note_progress(self) -> None:
        if self._group_is_up:
            return
        missing, now = self._shards.missing(), time.monotonic()
        if not missing:
            self._group_is_up = self._was_up = True
            log.info("shards are up num_shard=%d seconds=%.1f", self._world_size, now - self._group_started_at)
        elif now >= self._next_waiting_log:
            self._next_waiting_log = now + WAITING_LOG_SECONDS
            log.info("waiting for shards ranks=%s", ",".join(map(str, missing)))

    def _say_over(self) -> None:
        """What runs is not to wait for shards that nobody starts again."""
        if self._router is not None and self._shards.first_dead() is not None:
            with contextlib.suppress(LaunchError):
                self._status.write("giving up", self._folder, is_over=True)

    def _look_after_router(self) -> None:
        assert self._router is not None
        if self._router.returncode is None:
            return
        # It lives through the death of shards, so what ends it before they were there is a mistake in its settings.
        if not self._was_up or self._router.returncode == USAGE_ERROR:
            raise LaunchError(f"the router could not be started: {self._router.describe_end()}")
        self._budget.spend(self._router.describe_end())
        log.error("%s; it is started again", self._router.describe_end())
        self._router = self._start_router()

    def _stop_all(self) -> None:
        if self._router is not None:
            grace_seconds = self._config.graceful_termination_timeout + ROUTER_EXTRA_SECONDS
            stop([self._router], grace_seconds, self._hurried)
        self._shards.stop(self._hurried)
        self._status.remove()
        if self._claim is not None:
            self._claim.give_back()

    def _stopped(self) -> bool:
        return self._num_stop_requests > 0

    def _hurried(self) -> bool:
        return self._num_stop_requests > 1

    def _start_download(self) -> Child:
        return self._start("download", self._commands.download(self._config))

    def _start_group(self) -> None:
        self._group_is_up = False
        self._group_started_at = time.monotonic()
        self._next_waiting_log = self._group_started_at + WAITING_LOG_SECONDS
        log.info("starting shards num_shard=%d model=%s", self._world_size, self._folder)
        self._shards.start()

    def _start_shard(self, rank: int) -> Child:
        device = {"CUDA_VISIBLE_DEVICES": self._devices[rank]} if self._devices else {}
        argv = self._commands.shard(self._config.shard_config(rank, self._world_size, self._folder))
        return self._start(f"shard-{rank}", argv, device)

    def _start_router(self) -> Child:
        config = self._config.router_config()
        return self._start("router", self._commands.router(config), secrets_to_environment(config))

    def _start(self, name: str, argv: list[str], extra: Mapping[str, str] | None = None) -> Child:
        return Child(name, argv, {**self._environment, **(extra or {})}, self._config.json_output)

