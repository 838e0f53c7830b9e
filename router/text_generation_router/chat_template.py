"""ChatTemplate: a conversation becomes the one text that its model was trained to continue.

In: the template of the model's folder, a conversation. Out: a prompt. Templates come with models, and so from strangers:
they run in a sandbox that neither reaches Python's insides nor changes what it is given. The variables and functions they
find are those of transformers' `apply_chat_template`. Knows nothing of tokens.
"""

import datetime
import json
import pathlib
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from text_generation_router.errors import ConfigurationError, TemplateError

Message = dict[str, Any]
_END_MARK = "\ue000end of the message to go on with\ue000"  # of characters for private use


class ChatTemplate:
    """Nothing may be asked of it before `load`."""

    def __init__(self) -> None:
        self._template: jinja2.Template | None = None
        self._special_tokens: dict[str, str] = {}

    def load(self, folder: pathlib.Path, tokenizer_config_path: pathlib.Path | None) -> None:
        """Reads the template from the first place that has one; a model may have none.

        Raises:
            ConfigurationError: a file cannot be read, or its template is none.
        """
        path = tokenizer_config_path or folder / "tokenizer_config.json"
        if tokenizer_config_path and not path.is_file():
            raise ConfigurationError(f"--tokenizer-config-path: there is no file {path}")
        config = _read_json(path)
        self._special_tokens = {
            name: _content(value) for name, value in config.items() if name.endswith("_token") and _content(value)
        }
        source = _template_source(folder, config, given=tokenizer_config_path is not None)
        if source is not None:
            try:
                self._template = _environment().from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise ConfigurationError(f"the chat template of {folder} is none: {error}") from error

    def render(self, messages: list[Message]) -> str:
        """The prompt for the next message, or, when the last message is the assistant's, for the rest of that one.

        Raises:
            TemplateError: there is no template, or it refuses this conversation.
        """
        if self._template is None:
            raise TemplateError("template not found: this model has no chat template")
        if not messages or messages[-1]["role"] != "assistant":
            return self._render(messages, add_generation_prompt=True)
        *before, last = messages
        marked = last | {"content": last["content"] + _END_MARK}  # what comes after is for messages that are complete
        prompt, mark, _ = self._render([*before, marked], add_generation_prompt=False).rpartition(_END_MARK)
        if not mark:
            raise TemplateError("the template changes the last message, so it cannot be continued")
        return prompt

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        assert self._template is not None
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=None, **self._special_tokens
            )
        except Exception as error:  # a template is a program: what it raises has no common root
            raise TemplateError(str(error)) from error


def _template_source(folder: pathlib.Path, config: dict[str, Any], given: bool) -> str | None:
    """A file that was given wins over those of the folder."""
    found = None if given else _file_template(folder)
    return found or _named_default(config.get("chat_template")) or _named_default(
        _read_json(folder / "processor_config.json").get("chat_template")
    )


def _file_template(folder: pathlib.Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read_text(path)
    return _named_default(_read_json(folder / "chat_template.json").get("chat_template"))


def _named_default(templates: Any) -> str | None:
    """The template itself, or the default one of a list of named ones."""
    if isinstance(templates, list):
        named = [entry for entry in templates if isinstance(entry, dict) and entry.get("name") == "default"]
        templates = named[0].get("template") if named else None
    return templates if isinstance(templates, str) else None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read_text(path))
    except ValueError as error:
        raise ConfigurationError(f"{path} is no JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _content(token: Any) -> str:
    """Tokens are texts, or objects that tell more about a text."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["dict"] = lambda *arguments, **values: dict(*arguments, **values)  # not the type: it has `update`
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return environment


class _Generation(jinja2.ext.Extension):
    """{% generation %} marks the assistant's words for training; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """With transformers' defaults: jinja2's own filter writes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
