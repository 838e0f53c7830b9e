"""Flags that are taken without effect: each says so, and the documentation lists them."""

import argparse
import dataclasses
import re
from pathlib import Path

import pytest

from text_generation_launcher.config import LauncherConfig
from text_generation_launcher.ignored_flags import IgnoredFlags
from text_generation_proto.flags import env_name, parse

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
SWITCHES = ("disable_custom_kernels", "ngrok", "disable_grammar_support", "enable_prefill_logprobs")

each_flag = pytest.mark.parametrize("field", dataclasses.fields(IgnoredFlags), ids=lambda field: field.name)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in dataclasses.fields(IgnoredFlags):
        monkeypatch.delenv(env_name(field), raising=False)


def ignored(*argv: str) -> IgnoredFlags:
    return parse(IgnoredFlags, argparse.ArgumentParser(), argv)


def option(field: dataclasses.Field[object]) -> str:
    return "--" + field.name.replace("_", "-")


def value(field: dataclasses.Field[object]) -> str:
    return "true" if field.name in SWITCHES else "chosen-value"


@each_flag
def test_each_is_taken_from_the_command_line_and_says_why_it_does_nothing(field: dataclasses.Field[object]) -> None:
    (line,) = ignored(option(field), value(field)).warnings()
    assert line.startswith(f"{option(field)} has no effect: ") and line.endswith(".")
    assert "chosen-value" not in line


@each_flag
def test_each_is_taken_from_the_environment(field: dataclasses.Field[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(field.name.upper(), value(field))
    (line,) = ignored().warnings()
    assert line.startswith(option(field))


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_needs_no_value_and_may_be_off(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    assert len(ignored(flag).warnings()) == 1
    assert ignored(flag, "false").warnings() == []


def test_nothing_set_is_nothing_said() -> None:
    assert ignored().warnings() == []


def test_no_flag_is_both_ignored_and_not() -> None:
    names = [field.name for owner in (IgnoredFlags, LauncherConfig) for field in dataclasses.fields(owner)]
    assert len(names) == len(set(names))


def test_the_documentation_lists_them_with_the_same_reasons() -> None:
    rows = re.findall(r"^\| --([a-z-]+) \| ([A-Z_]+) \| (.*) \|$", OPERATIONS.read_text(), re.MULTILINE)
    expected = [(option(field)[2:], field.name.upper(), field.metadata["help"]) for field in dataclasses.fields(IgnoredFlags)]
    assert rows == expected
