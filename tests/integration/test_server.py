"""The whole server, started as a person starts it: launcher, router, shards, HTTP."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from reference import Reference
from served import Served, wait_until_gone
from tokenizers import Tokenizer

PROMPT = "ROMEO:"


@pytest.fixture(scope="module", params=[1, 2], ids=["1 shard", "2 shards"])
def server(request: pytest.FixtureRequest, embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    sockets = tmp_path_factory.mktemp("sockets")
    with Served(embedded_model, sockets, "--num-shard", str(request.param), "--dtype", "float32") as served:
        yield served
    assert served.returncode == 0
    assert not list(sockets.iterdir()), "a socket file was left behind"


@pytest.fixture(scope="module")
def expected(embedded_model: Path) -> str:
    """What transformers' generate continues PROMPT with."""
    tokenizer = Tokenizer.from_file(str(embedded_model / "tokenizer.json"))
    answer = Reference(embedded_model).generate(tokenizer.encode(PROMPT).ids, 40)
    return str(tokenizer.decode(answer.token_ids))


def test_it_answers_like_transformers(server: Served, expected: str) -> None:
    assert server.generate(PROMPT, max_new_tokens=40) == expected


def test_a_stream_adds_up_to_the_same_text(server: Served, expected: str) -> None:
    events = list(server.stream(PROMPT, max_new_tokens=40, details=True))
    assert "".join(event["token"]["text"] for event in events) == events[-1]["generated_text"] == expected
    assert events[-1]["details"]["generated_tokens"] == len(events) == 40
    assert events[-1]["details"]["finish_reason"] == "length"


def test_a_stop_sequence_ends_the_answer_and_stays_in_it(server: Served, expected: str) -> None:
    stop = expected[10:14]
    text = server.generate(PROMPT, max_new_tokens=40, stop=[stop])
    assert text == expected[: expected.index(stop) + len(stop)]


def test_a_seed_repeats_a_sampled_answer(server: Served) -> None:
    answers = {server.generate(PROMPT, max_new_tokens=20, do_sample=True, temperature=1.5, seed=7) for _ in range(3)}
    assert len(answers) == 1
    assert server.generate(PROMPT, max_new_tokens=20, do_sample=True, temperature=1.5, seed=8) not in answers


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{not json", 400),
        ({"inputs": ""}, 422),
        ({"inputs": 5}, 422),
        ({"parameters": {}}, 422),
        ({"inputs": "word " * 5000}, 422),
        ({"inputs": "a", "parameters": {"temperature": -1}}, 422),
        ({"inputs": "a", "parameters": {"max_new_tokens": 100_000}}, 422),
        ({"inputs": "a" * 3_000_000}, 413),
    ],
    ids=["no JSON", "empty", "wrong type", "no inputs", "too long", "negative temperature", "too many tokens", "huge body"],
)
def test_bad_input_is_refused_in_one_line(server: Served, body: object, status: int) -> None:
    actual, answer = server.post("/generate", body)
    assert actual == status
    assert set(answer) == {"error", "error_type"} and "\n" not in answer["error"]


def test_a_killed_shard_costs_time_but_neither_a_request_nor_a_token(server: Served, expected: str) -> None:
    events = server.stream(PROMPT, max_new_tokens=400)
    first = list(itertools.islice(events, 40))
    assert "".join(event["token"]["text"] for event in first) == expected
    shards = server.children()["text_generation_server"]
    os.kill(shards[-1], signal.SIGKILL)
    rest = list(events)
    assert len(first) + len(rest) == 400
    assert rest[-1]["generated_text"] == server.generate(PROMPT, max_new_tokens=400)
    wait_until_gone(shards, 10)  # the dead one and those that were started again with it


def test_sigkill_of_the_launcher_leaves_no_process_and_no_socket(embedded_model: Path, tmp_path: Path) -> None:
    with Served(embedded_model, tmp_path, "--num-shard", "2") as served:
        children = [pid for pids in served.children().values() for pid in pids]
        assert len(children) == 3 and len(list(tmp_path.glob("shard-[01]"))) == 2
        served.process.kill()
        wait_until_gone(children, 20)
        assert not list(tmp_path.glob("shard-[01]"))


def test_a_stopped_launcher_finishes_what_runs_and_exits_with_0(embedded_model: Path, tmp_path: Path) -> None:
    with Served(embedded_model, tmp_path) as served:
        events = served.stream(PROMPT, max_new_tokens=300)
        next(events)
        served.process.send_signal(signal.SIGINT)
        assert len(list(events)) == 299
        assert served.process.wait(20) == 0
    assert not list(tmp_path.iterdir())


def test_a_model_is_served_before_its_weights_are_there(embedded_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(embedded_model / name, tmp_path)
    with Served(tmp_path, tmp_path, "--random-weights") as served:
        assert served.generate(PROMPT, max_new_tokens=8)


def corrupt(folder: Path, model: Path) -> Path:
    """`model` with a weight file that was cut short."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(1_000_000)
    return folder


@pytest.mark.parametrize("case", ["unknown folder", "no weights", "cut short", "3 shards for 8 heads", "port in use"])
def test_what_cannot_start_says_why_in_one_line_and_leaves_nothing(embedded_model: Path, tmp_path: Path, case: str) -> None:
    model, arguments, reason = {
        "unknown folder": (tmp_path / "nowhere", [], "nowhere"),
        "no weights": (tmp_path / "empty", [], "holds no weights"),
        "cut short": (tmp_path / "cut", [], "cut short"),
        "3 shards for 8 heads": (embedded_model, ["--num-shard", "3"], "8 attention heads cannot be split over 3 shards"),
        "port in use": (embedded_model, [], "in use"),
    }[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_bytes((embedded_model / "config.json").read_bytes())
    (tmp_path / "empty" / "tokenizer.json").write_bytes((embedded_model / "tokenizer.json").read_bytes())
    corrupt(tmp_path / "cut", embedded_model)
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    served = Served(model, sockets, *arguments)
    with socket.create_server(("127.0.0.1", served.port)) if case == "port in use" else contextlib.nullcontext():
        process = subprocess.run(served.command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    last_line = process.stderr.strip().splitlines()[-1]
    assert reason in last_line, process.stderr
    assert "Traceback" not in process.stderr
    assert not list(sockets.iterdir())
    time.sleep(0.2)
    assert not processes_with(str(sockets))


def processes_with(word: str) -> list[int]:
    """Ids of processes whose command line names `word`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word in (folder / "cmdline").read_bytes().decode() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
