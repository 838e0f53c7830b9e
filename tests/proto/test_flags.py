import argparse
import dataclasses
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text_generation_proto.flags import flag, parse, to_argv


@dataclasses.dataclass(frozen=True, slots=True)
class Oven:
    dish: str = flag(positional=True, help="What is baked.")
    degrees: int = flag(180, short="-d", help="Too low leaves it raw, too high burns 100% of it.")
    fan_speed: float | None = flag(None, help="Unset: no fan.")
    mode: str = flag("upper", choices=("upper", "lower"), env="OVEN_MODE", help="Which side is hot.")
    light: bool = flag(True, help="Whether one can see inside.")
    self_cleaning: bool = flag(False, help="Whether it cleans itself.")

    def __post_init__(self) -> None:
        if self.degrees > 300:
            raise ValueError(f"`degrees` must be <= 300. Given: {self.degrees}")


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISH", "DEGREES", "FAN_SPEED", "MODE", "OVEN_MODE", "LIGHT", "SELF_CLEANING"):
        monkeypatch.delenv(name, raising=False)


def read(*argv: str) -> Oven:
    return parse(Oven, argparse.ArgumentParser("oven"), argv)


def usage_error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as exit:
        read(*argv)
    assert exit.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_default_lives_in_the_class_alone():
    assert read("bread") == Oven("bread") == Oven("bread", 180, None, "upper", True, False)


def test_values_come_in_their_fields_types():
    found = read("bread", "--degrees", "200", "--fan-speed", "0.5", "--mode", "lower")
    assert found == Oven("bread", 200, 0.5, "lower") and isinstance(found.degrees, int)
    assert read("bread", "-d", "1").degrees == 1


def test_switches_go_both_ways():
    assert read("bread", "--no-light", "--self-cleaning") == Oven("bread", light=False, self_cleaning=True)
    assert read("bread", "--light", "--no-self-cleaning") == Oven("bread")


def test_the_environment_is_over_the_default_and_the_command_line_over_both(monkeypatch):
    monkeypatch.setenv("DEGREES", "150")
    monkeypatch.setenv("SELF_CLEANING", "true")
    assert read("bread") == Oven("bread", 150, self_cleaning=True)
    assert read("bread", "--degrees", "220", "--no-self-cleaning") == Oven("bread", 220)


def test_the_default_given_on_the_command_line_is_over_the_environment(monkeypatch):
    monkeypatch.setenv("DEGREES", "150")
    assert read("bread", "--degrees", "180").degrees == 180


def test_a_field_can_have_a_variable_of_another_name(monkeypatch):
    monkeypatch.setenv("MODE", "nonsense")
    monkeypatch.setenv("OVEN_MODE", "lower")
    assert read("bread").mode == "lower"


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("DEGREES", "")
    monkeypatch.setenv("LIGHT", "")
    assert read("bread") == Oven("bread")


@pytest.mark.parametrize("word", ["1", "true", "True", "YES", "on"])
def test_words_that_mean_yes(monkeypatch, word):
    monkeypatch.setenv("SELF_CLEANING", word)
    assert read("bread").self_cleaning is True


@pytest.mark.parametrize("word", ["0", "false", "False", "NO", "off"])
def test_words_that_mean_no(monkeypatch, word):
    monkeypatch.setenv("LIGHT", word)
    assert read("bread").light is False


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DEGREES", "hot", "environment variable DEGREES: 'hot' is no int"),
        ("FAN_SPEED", "fast", "environment variable FAN_SPEED: 'fast' is no float"),
        ("LIGHT", "maybe", "environment variable LIGHT: 'maybe' is no bool"),
        ("OVEN_MODE", "middle", "environment variable OVEN_MODE: 'middle' is not one of"),
        ("DEGREES", "400", "`degrees` must be <= 300. Given: 400"),
    ],
)
def test_a_bad_value_in_the_environment_is_a_usage_error_that_names_it(monkeypatch, capsys, name, value, message):
    monkeypatch.setenv(name, value)
    assert message in usage_error(capsys, "bread")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("bread", "--degrees", "hot"), "'hot'"),
        (("bread", "--mode", "middle"), "'middle'"),
        (("bread", "--degrees", "301"), "`degrees` must be <= 300. Given: 301"),
        (("bread", "--temperature", "1"), "--temperature"),
        ((), "dish is required"),
    ],
)
def test_a_bad_command_line_is_a_usage_error_that_names_it(capsys, argv, message):
    assert message in usage_error(capsys, *argv)


def test_help_shows_defaults_and_variables_and_survives_percent_signs(capsys):
    with pytest.raises(SystemExit) as exit:
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0
    assert "burns 100% of it. [env: DEGREES] [default: 180]" in text and "[env: OVEN_MODE] [default: upper]" in text
    assert "--light, --no-light" in text and "[default: true]" in text
    assert "no fan. [env: FAN_SPEED]" in text and "FAN_SPEED] [default" not in text


def test_the_way_back_names_only_what_differs():
    assert to_argv(Oven("bread")) == ["bread"]
    assert to_argv(Oven("bread", 180, 0.5, light=False)) == ["bread", "--fan-speed", "0.5", "--no-light"]


_WORDS = st.text(string.ascii_letters + string.digits + " /=%'\"$äß", min_size=1)
_MODES = st.sampled_from(["upper", "lower"])


@given(st.builds(Oven, _WORDS, st.integers(0, 300), st.none() | st.floats(0, 9), _MODES, st.booleans(), st.booleans()))
def test_every_config_survives_the_way_to_a_command_line_and_back(config):
    assert read(*to_argv(config)) == config
