import json
import logging
import re

import pytest

from text_generation_proto import logs

logger = logging.getLogger("text_generation_router.engine")


@pytest.fixture(autouse=True)
def no_level_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOG_LEVEL", raising=False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == "", "standard output is not for logs"
    return captured.err.splitlines()


def test_a_line_of_text_names_the_time_the_level_and_the_process(capsys):
    logs.configure("shard rank=1", json_output=False)
    logger.info("ready num_blocks=%d", 7)
    (line,) = lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO shard rank=1: ready num_blocks=7", line)


def test_a_json_line_has_the_same_and_where_it_comes_from(capsys):
    logs.configure("router", json_output=True)
    logger.warning('a "quoted" word, %s', "日本")
    (line,) = lines(capsys)
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("timestamp"))
    assert found == {
        "level": "WARNING",
        "process": "router",
        "target": "text_generation_router.engine",
        "message": 'a "quoted" word, 日本',
    }


def test_a_traceback_stays_in_its_json_line(capsys):
    logs.configure("router", json_output=True)
    try:
        raise RuntimeError("first line\nsecond line")
    except RuntimeError:
        logger.exception("step failed id=%d", 3)
    (line,) = lines(capsys)
    found = json.loads(line)
    assert found["message"] == "step failed id=3" and "RuntimeError: first line\nsecond line" in found["traceback"]


def test_debug_lines_appear_when_asked_for(capsys, monkeypatch):
    logs.configure("router", json_output=False)
    logger.debug("hidden")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    logs.configure("router", json_output=False)
    logger.debug("shown")
    (line,) = lines(capsys)
    assert line.endswith("DEBUG router: shown")


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("error", logging.ERROR),
        ("warn", logging.WARNING),
        ("WARNING", logging.WARNING),
        ("info", logging.INFO),
        ("trace", logging.DEBUG),
        ("info,text_generation_router=debug", logging.INFO),
        ("text_generation_router=info, debug", logging.DEBUG),
        ("text_generation_router=debug", logging.INFO),
        ("loud", logging.INFO),
        ("", logging.INFO),
    ],
)
def test_the_level_is_the_first_plain_one_of_a_filter(text, level):
    assert logs.read_level(text) == level


def test_configuring_again_replaces_what_was_there(capsys):
    for _ in range(2):
        logs.configure("router", json_output=False)
    logger.info("once")
    assert len(lines(capsys)) == 1
