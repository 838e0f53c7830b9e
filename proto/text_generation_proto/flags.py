"""A frozen dataclass as a command line: the other contract between the processes.

In: a config class whose fields carry `flag(...)` metadata. Out: an argument parser with help and environment variables,
an instance of the class, and the way back for the launcher that starts the process: `to_argv`, and for what no command
line may show `secrets_to_environment`.
Knows nothing of what any flag means. Standard library only.
"""

import argparse
import dataclasses
import os
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Config = TypeVar("Config")

STRINGS = tuple[str, ...]  # the type of a flag that may be given several times
SECRET_HELP = " It is never logged; given by the variable, no list of processes shows it."


def flag(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    choices: Sequence[str] | None = None,
    env: str | None = None,
    short: str | None = None,
    positional: bool = False,
    secret: bool = False,
) -> Any:
    """A config field that is also `--its-name` and the environment variable `ITS_NAME` (or `env`).

    A `tuple[str, ...]` is `--its-name` once for each value, and in the environment a list with commas.
    """
    metadata = {"help": help, "choices": choices, "env": env, "short": short, "positional": positional, "secret": secret}
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


def parse(config_class: type[Config], parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> Config:
    """Command line over environment over default. Exits with status 2 and one line on a bad value."""
    add_flags(config_class, parser)
    return from_namespace(config_class, parser, parser.parse_args(argv))


def add_flags(config_class: type, parser: argparse.ArgumentParser, group: str | None = None) -> None:
    """Flags under the heading `group` of --help, or among the others."""
    parser.allow_abbrev = False  # what is short for one flag today is short for two when another is added
    container = parser if group is None else parser.add_argument_group(group)
    for field in dataclasses.fields(config_class):
        _add_flag(container, field, _value_type(config_class, field))


def from_namespace(config_class: type[Config], parser: argparse.ArgumentParser, namespace: argparse.Namespace) -> Config:
    """Values given on the command line, then the environment's, then the defaults; `ValueError`s become usage errors."""
    values = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        given = getattr(namespace, field.name)
        environment = os.environ.get(env_name(field))
        if given is not None:
            values[field.name] = tuple(given) if isinstance(given, list) else given
        elif environment:
            values[field.name] = _from_environment(parser, config_class, field, environment)
        elif field.default is dataclasses.MISSING:
            parser.error(f"{_option(field)} is required")
    try:
        return config_class(**values)
    except ValueError as error:
        parser.error(str(error))


def to_argv(config: Any) -> list[str]:
    """The command line that gives `config` back but for its secrets, naming only what differs from the defaults."""
    argv: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata["secret"]:
            continue
        if field.metadata["positional"]:
            argv.insert(0, str(value))
        elif isinstance(value, bool) and isinstance(field.default, bool):
            argv += [] if value == field.default else [_option(field) if value else f"--no-{_option(field)[2:]}"]
        elif isinstance(value, tuple):
            argv += [word for item in value for word in (_option(field), item)]
        elif value is not None and value != field.default:
            argv += [_option(field), str(value)]
    return argv


def secrets_to_environment(config: Any) -> dict[str, str]:
    """What `to_argv` leaves out, as variables for the child's environment: other users cannot read that."""
    secrets = [field for field in dataclasses.fields(config) if field.metadata["secret"]]
    values = {env_name(field): getattr(config, field.name) for field in secrets}
    return {name: ",".join(value) if isinstance(value, tuple) else value for name, value in values.items() if value}


def env_name(field: dataclasses.Field[Any]) -> str:
    return field.metadata["env"] or field.name.upper()


def _add_flag(parser: argparse._ActionsContainer, field: dataclasses.Field[Any], value_type: type) -> None:
    metadata = field.metadata
    if metadata["positional"]:
        parser.add_argument(field.name, nargs="?", metavar=field.name.upper(), help=metadata["help"])
        return
    names = [name for name in (metadata["short"], _option(field)) if name]
    help_text = f"{metadata['help']}{SECRET_HELP if metadata['secret'] else ''} [env: {env_name(field)}]{_default_text(field)}"
    help_text = help_text.replace("%", "%%")
    if value_type is bool and field.default is None:  # may also be said as `--flag true`, as the original has it
        parser.add_argument(*names, type=_read_bool, nargs="?", const=True, metavar="BOOL", help=help_text)
    elif value_type is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=help_text)
    elif value_type == STRINGS:
        parser.add_argument(*names, type=_read_item, action="append", metavar="STR", help=help_text)
    else:
        choices = metadata["choices"]
        metavar = "{" + ",".join(choices) + "}" if choices else value_type.__name__.upper()
        parser.add_argument(*names, type=value_type, choices=choices, metavar=metavar, help=help_text)


def _from_environment(parser: argparse.ArgumentParser, owner: type, field: dataclasses.Field[Any], text: str) -> Any:
    value_type = _value_type(owner, field)
    try:
        value = _reader(value_type)(text)
    except argparse.ArgumentTypeError as error:
        parser.error(f"environment variable {env_name(field)}: {error}")
    except ValueError:
        parser.error(f"environment variable {env_name(field)}: {text!r} is no {value_type.__name__}")
    if field.metadata["choices"] and value not in field.metadata["choices"]:
        parser.error(f"environment variable {env_name(field)}: {text!r} is not one of {field.metadata['choices']}")
    return value


def _reader(value_type: type) -> Callable[[str], Any]:
    if value_type == STRINGS:
        return lambda text: tuple(_read_item(item) for item in text.split(","))
    return _read_bool if value_type is bool else value_type


def _read_item(text: str) -> str:
    """One value of several. The message does not repeat it: it may be a secret."""
    if not text.strip() or "," in text:
        raise argparse.ArgumentTypeError("a value is empty, or has a comma in it")
    return text.strip()


def _read_bool(text: str) -> bool:
    if text.lower() in ("1", "true", "t", "yes", "y", "on"):
        return True
    if text.lower() in ("0", "false", "f", "no", "n", "off"):
        return False
    raise ValueError(text)


def _value_type(owner: type, field: dataclasses.Field[Any]) -> type:
    """The field's type without its `| None`."""
    declared = typing.get_type_hints(owner)[field.name]
    if isinstance(declared, types.UnionType):
        declared = next(part for part in typing.get_args(declared) if part is not type(None))
    return typing.cast(type, declared)


def _option(field: dataclasses.Field[Any]) -> str:
    return field.name if field.metadata["positional"] else "--" + field.name.replace("_", "-")


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default in (dataclasses.MISSING, None, ()):
        return ""
    return f" [default: {str(field.default).lower() if isinstance(field.default, bool) else field.default}]"
