"""Two hundred connections that misbehave leave nothing behind: no sequence, no block, no file descriptor."""

import contextlib
import json
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from served import Served

NUM_CONNECTIONS = 200
SECONDS = 3.0
BODY = json.dumps({"inputs": "ROMEO:", "parameters": {"max_new_tokens": 1500}}).encode()
HEAD = b"POST /generate_stream HTTP/1.1\r\nHost: server\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def only_open(connection: socket.socket) -> None:
    """And say nothing."""


def half_a_head(connection: socket.socket) -> None:
    connection.sendall(HEAD[:40])


def half_a_body(connection: socket.socket) -> None:
    connection.sendall(HEAD + BODY[: len(BODY) // 2])


def leave_in_the_middle(connection: socket.socket) -> None:
    connection.sendall(HEAD + BODY)
    connection.recv(200)
    connection.close()


def leave_with_a_reset(connection: socket.socket) -> None:
    connection.sendall(HEAD + BODY)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def read_a_byte_now_and_then(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.sendall(HEAD + BODY)
    connection.recv(1)


ABUSES: list[Callable[[socket.socket], None]] = [
    *(only_open, half_a_head, half_a_body),
    *(leave_in_the_middle, leave_with_a_reset, read_a_byte_now_and_then),
]


@pytest.fixture
def server(embedded_model: Path, tmp_path: Path):
    with Served(embedded_model, tmp_path, "--max-concurrent-requests", str(NUM_CONNECTIONS)) as served:
        yield served


def test_nothing_is_left_of_connections_that_misbehave(server: Served) -> None:
    (router,) = [psutil.Process(pid) for pid in server.children()["text_generation_router"]]
    server.generate("ROMEO:", max_new_tokens=2)
    num_fds_before = router.num_fds()
    with contextlib.ExitStack() as stack:
        connections = []
        for index in range(NUM_CONNECTIONS):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            connections.append(connection)
            ABUSES[index % len(ABUSES)](connection)
        slow = connections[ABUSES.index(read_a_byte_now_and_then) :: len(ABUSES)]
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for connection in slow:
                connection.recv(1)
            time.sleep(1.0)
        assert gauge(server, "tgi_batch_current_size") + gauge(server, "tgi_queue_size") >= 1, "the slow ones still run"
        assert server.generate("ROMEO:", max_new_tokens=2), "the server answers others all the while"
    wait_until(lambda: gauge(server, "tgi_batch_current_size") == gauge(server, "tgi_queue_size") == 0)
    assert gauge(server, "tgi_kv_cache_utilization") == 0
    wait_until(lambda: router.num_fds() <= num_fds_before)
    assert server.generate("ROMEO:", max_new_tokens=2)


def gauge(server: Served, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to rest"
        time.sleep(0.1)
