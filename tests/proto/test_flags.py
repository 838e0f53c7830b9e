import argparse
import dataclasses
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text_generation_proto.flags import add_flags, flag, parse, secrets_to_environment, to_argv


@dataclasses.dataclass(frozen=True, slots=True)
class Oven:
    dish: str = flag(positional=True, help="What is baked.")
    degrees: int = flag(180, short="-d", help="Too low leaves it raw, too high burns 100% of it.")
    fan_speed: float | None = flag(None, help="Unset: no fan.")
    mode: str = flag("upper", choices=("upper", "lower"), env="OVEN_MODE", help="Which side is hot.")
    light: bool = flag(True, help="Whether one can see inside.")
    self_cleaning: bool = flag(False, help="Whether it cleans itself.")
    spice: tuple[str, ...] = flag((), help="May be given several times.")
    recipe: tuple[str, ...] = flag((), secret=True, help="Of grandmother.")
    pin: str | None = flag(None, secret=True, help="Locks the door.")

    def __post_init__(self) -> None:
        if self.degrees > 300:
            raise ValueError(f"`degrees` must be <= 300. Given: {self.degrees}")


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISH", "DEGREES", "FAN_SPEED", "MODE", "OVEN_MODE", "LIGHT", "SELF_CLEANING", "SPICE", "RECIPE", "PIN"):
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


def test_a_flag_of_several_values_is_repeated_and_in_the_environment_a_list_with_commas(monkeypatch):
    assert read("bread", "--spice", "salt", "--spice", " black pepper ").spice == ("salt", "black pepper")
    assert read("bread").spice == ()
    monkeypatch.setenv("SPICE", "anise, cumin")
    assert read("bread").spice == ("anise", "cumin")
    assert read("bread", "--spice", "salt").spice == ("salt",)


@pytest.mark.parametrize("value", ["", " ", "hush,hush"])
def test_one_of_several_values_is_neither_empty_nor_a_list_and_is_not_repeated(capsys, value):
    message = usage_error(capsys, "bread", "--recipe", value)
    assert message.endswith("argument --recipe: a value is empty, or has a comma in it")


@pytest.mark.parametrize("value", [",", "hush,", " ", "hush,,hush"])
def test_a_list_in_the_environment_has_no_empty_value(monkeypatch, capsys, value):
    monkeypatch.setenv("RECIPE", value)
    message = usage_error(capsys, "bread")
    assert message.endswith("environment variable RECIPE: a value is empty, or has a comma in it")


def test_a_secret_is_read_like_any_other_value_but_not_shown(monkeypatch):
    monkeypatch.setenv("RECIPE", "hush1,hush2")
    config = read("bread", "--pin", "hush3")
    assert (config.recipe, config.pin) == (("hush1", "hush2"), "hush3")
    assert "hush" not in repr(config) and "hush" not in " ".join(to_argv(config))


def test_a_secret_travels_in_the_environment(monkeypatch):
    config = Oven("bread", recipe=("hush1", "hush2"), pin="hush3")
    environment = secrets_to_environment(config)
    assert environment == {"RECIPE": "hush1,hush2", "PIN": "hush3"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read(*to_argv(config)) == config
    assert secrets_to_environment(Oven("bread", spice=("salt",))) == {}


def test_a_flag_is_not_known_by_its_beginning(capsys):
    assert "--degr" in usage_error(capsys, "bread", "--degr", "200")


def test_flags_may_have_a_heading_of_their_own():
    parser = argparse.ArgumentParser("oven")
    add_flags(Oven, parser, "for the kitchen")
    assert parser.format_help().index("for the kitchen:") < parser.format_help().index("--degrees")


@pytest.mark.parametrize("word", ["1", "true", "True", "t", "YES", "y", "on"])
def test_words_that_mean_yes(monkeypatch, word):
    monkeypatch.setenv("SELF_CLEANING", word)
    assert read("bread").self_cleaning is True


@pytest.mark.parametrize("word", ["0", "false", "False", "f", "NO", "n", "off"])
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
    assert "several times. [env: SPICE]" in text and "SPICE] [default" not in text
    assert "Locks the door. It is never logged; given by the variable, no list of processes shows it. [env: PIN]" in text


def test_the_way_back_names_only_what_differs():
    assert to_argv(Oven("bread")) == ["bread"]
    assert to_argv(Oven("bread", 180, 0.5, light=False)) == ["bread", "--fan-speed", "0.5", "--no-light"]
    assert to_argv(Oven("bread", spice=("salt", "anise"))) == ["bread", "--spice", "salt", "--spice", "anise"]


_WORDS = st.text(string.ascii_letters + string.digits + " /=%'\"$äß", min_size=1)
_MODES = st.sampled_from(["upper", "lower"])


_SPICES = st.lists(_WORDS.map(str.strip).filter(bool)).map(tuple)
_OVENS = st.builds(
    Oven, _WORDS, st.integers(0, 300), st.none() | st.floats(0, 9), _MODES, st.booleans(), st.booleans(), _SPICES
)


@given(_OVENS)
def test_every_config_survives_the_way_to_a_command_line_and_back(config):
    assert read(*to_argv(config)) == config
