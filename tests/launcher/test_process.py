"""One child: its lines, its last words, its end."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from launcher.fake_launch import is_alive, wait_until
from text_generation_launcher.process import Child, stop
from text_generation_proto import logs


def never() -> bool:
    return False


def program(source: str, json_output: bool = False) -> Child:
    return Child("it", [sys.executable, "-S", "-c", source], {**os.environ, "PYTHONUNBUFFERED": "1"}, json_output)


def ended(child: Child) -> Child:
    wait_until(lambda: child.returncode is not None)
    child.drain()
    return child


def test_lines_are_relayed_behind_the_childs_name(capsys: pytest.CaptureFixture[str]) -> None:
    ended(program("import sys; print('one'); print('two', file=sys.stderr)"))
    assert capsys.readouterr() == ("it | one\n", "it | two\n")


def test_json_lines_are_relayed_unchanged_and_others_become_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("launcher", json_output=True)
    ended(program("import sys; print('{\"a\": 1}', file=sys.stderr); print('Traceback', file=sys.stderr)", True))
    first, second = capsys.readouterr().err.splitlines()
    assert first == '{"a": 1}'
    assert json.loads(second)["message"] == "it | Traceback"


def test_a_progress_bar_becomes_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    source = "import sys; [sys.stderr.write(f'\\r{i}%') for i in range(100)]; sys.stderr.write('\\r100%\\n')"
    child = ended(program(source))
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1] == "it | 100%" and len(shown) < 5
    assert list(child.stderr_lines) == ["100%"]


def test_the_end_is_described_by_exit_code_and_error_line() -> None:
    source = "import sys; print('Error: why', file=sys.stderr); print('and more', file=sys.stderr); sys.exit(3)"
    assert ended(program(source)).describe_end() == "it ended with exit code 3: Error: why"


@pytest.mark.parametrize(
    "line", ["2026-01-01T00:00:00Z ERROR shard rank=1: Error: why", '{"level": "ERROR", "message": "Error: why"}', "Error: why"]
)
def test_an_error_is_told_without_the_log_around_it(line: str) -> None:
    assert ended(program(f"print({line!r}); raise SystemExit(1)")).describe_end().endswith("exit code 1: Error: why")


def test_the_end_is_described_by_the_last_line_where_no_error_is_named() -> None:
    talkative = program("print('so far'); raise SystemExit(1)")
    assert ended(talkative).describe_end().endswith("exit code 1: its last line was: so far")
    assert ended(program("raise SystemExit(1)")).describe_end().endswith("exit code 1: it printed nothing")


def test_death_by_signal_is_named() -> None:
    child = program("import os; os.kill(os.getpid(), 9)")
    assert "signal SIGKILL" in ended(child).describe_end()


def test_a_child_that_heeds_sigterm_is_not_killed() -> None:
    source = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('ready'); time.sleep(60)"
    child = program(source)
    wait_until(lambda: "ready" in child.stdout_lines)
    stop([child], 10.0, never)
    assert child.returncode == 0


def test_a_child_that_ignores_sigterm_is_killed_with_its_own_children(tmp_path: Path) -> None:
    source = (
        "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN)\n"
        "grandchild = subprocess.Popen(['sleep', '60'])\n"
        "print(grandchild.pid); time.sleep(60)"
    )
    child = program(source)
    wait_until(lambda: bool(child.stdout_lines))
    stop([child], 0.2, never)
    assert child.returncode == -signal.SIGKILL
    wait_until(lambda: not is_alive(int(child.stdout_lines[0])))


def test_a_hurry_cuts_the_grace_period_short() -> None:
    child = program("import signal, time; signal.signal(15, signal.SIG_IGN); print('ready'); time.sleep(60)")
    wait_until(lambda: "ready" in child.stdout_lines)
    started = time.monotonic()
    stop([child], 60.0, lambda: True)
    assert time.monotonic() - started < 10
    assert child.returncode == -signal.SIGKILL
