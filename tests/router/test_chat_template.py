"""ChatTemplate: what a conversation becomes, compared with transformers' `apply_chat_template` where that is the model."""

import datetime
import json
import pathlib

import pytest

import tiny_tokenizers
from text_generation_router.chat_template import ChatTemplate, Message
from text_generation_router.errors import ConfigurationError, TemplateError

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system_message if loop.first else '') + message['content'] | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
NAMESPACE = """{%- set ns = namespace(num_users=0, system='none') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = message.content | upper %}
        {%- continue %}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- set ns.num_users = ns.num_users + 1 %}
    {%- endif %}
    {%- if ns.num_users > 2 %}{% break %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ message.role }}: {{ message.content }}{{ eos_token if not loop.last }}
{% endfor %}
{% macro closing(word) -%}
    ({{ word }}, {{ ns.num_users }} of {{ ns.system }})
{%- endmacro %}
{{ closing('end') }}{{ pad_token }}{{ unk_token }}{{ mask_token }}
"""
NAMES_AND_JSON = (
    "{% for message in messages %}{{ message.name if message.name is defined else message['role'] }}="
    "{{ message | tojson }}{{ message.content | tojson(indent=1) }}\n    {# gone #}\n{% endfor %}"
    "{% if tools is not none and tools %}tools{% endif %}{{ '...' if add_generation_prompt }}"
)
GENERATION = (
    "{% for message in messages %}{% if message.role == 'assistant' %}A:{% generation %}{{ message.content }}"
    "{% set inner = 'x' %}{% endgeneration %};{% else %}U:{{ message.content }};{% endif %}{% endfor %}"
)
TEMPLATES = {
    "ChatML": CHATML,
    "Llama 2": LLAMA_2,
    "namespace": NAMESPACE,
    "names and JSON": NAMES_AND_JSON,
    "generation": GENERATION,
}

SYSTEM = {"role": "system", "content": "Be brief & <kind>."}
USER = {"role": "user", "content": "  Señor, 日本?\n"}
ASSISTANT = {"role": "assistant", "content": "Sí."}
CONVERSATIONS = {
    "one question": [USER],
    "with a system message": [SYSTEM, USER],
    "a long one": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT, {"role": "user", "content": "Bye", "name": "Ann"}],
}
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def loaded(folder: pathlib.Path, template: object = None, path: pathlib.Path | None = None, **config: object) -> ChatTemplate:
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    made = ChatTemplate()
    made.load(folder, path)
    return made


@pytest.fixture(scope="module")
def reference():
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizers.byte_level(), **SPECIAL_TOKENS)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_prompt_is_the_one_that_transformers_makes(reference, tmp_path, template, messages):
    expected = reference.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert loaded(tmp_path, template, **SPECIAL_TOKENS).render(messages) == expected
    assert len(expected) > len(messages[-1]["content"])


@pytest.mark.parametrize(
    ("template", "content"),
    [
        *((CHATML, content) for content in ("Sure", "Sure, ", " The answer", "1.\n", "Sí, señor\n\n")),
        *((LLAMA_2, content) for content in ("Sure", "Sure, ", " The answer")),
    ],
)
def test_the_assistants_last_message_is_continued_as_transformers_does(reference, tmp_path, template, content):
    messages = [USER, {"role": "assistant", "content": content}]
    expected = reference.apply_chat_template(messages, chat_template=template, tokenize=False, continue_final_message=True)
    assert loaded(tmp_path, template, **SPECIAL_TOKENS).render(messages) == expected


@pytest.mark.parametrize(
    ("template", "content"), [(CHATML, "<"), (CHATML, "e"), (CHATML, "im"), (CHATML, ""), (LLAMA_2, "s"), (LLAMA_2, "")]
)
def test_a_last_message_that_looks_like_what_follows_it_is_continued_too(reference, tmp_path, template, content):
    messages = [USER, {"role": "assistant", "content": content}]
    expected = reference.apply_chat_template(messages, chat_template=template, tokenize=False, continue_final_message=True)
    assert loaded(tmp_path, template, **SPECIAL_TOKENS).render(messages) == expected


def test_a_last_message_that_the_template_changes_cannot_be_continued(tmp_path):
    template = loaded(tmp_path, "{{ messages[-1].content | upper }}")
    with pytest.raises(TemplateError, match="cannot be continued"):
        template.render([USER, ASSISTANT])


@pytest.mark.parametrize(("messages", "expected"), [([USER], "True"), ([USER, ASSISTANT, USER], "True"), ([SYSTEM], "True")])
def test_the_assistant_is_asked_for_unless_it_has_begun(tmp_path, messages, expected):
    assert loaded(tmp_path, "{{ add_generation_prompt }}").render(messages) == expected
    assert loaded(tmp_path, "{{ messages[-1].content }}{{ add_generation_prompt }}").render([USER, ASSISTANT]) == "Sí."


def test_a_conversation_that_the_template_refuses_is_the_clients_error(tmp_path):
    with pytest.raises(TemplateError, match="Template error: Conversation roles must alternate") as caught:
        loaded(tmp_path, LLAMA_2, **SPECIAL_TOKENS).render([USER, USER])
    assert (caught.value.status, caught.value.error_type) == (422, "template_error")


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages[7].content }}", "{{ messages + 1 }}", "{% include 'x' %}"])
def test_whatever_goes_wrong_in_a_template_is_a_template_error(tmp_path, template):
    with pytest.raises(TemplateError):
        loaded(tmp_path, template).render([USER])


def test_a_model_without_a_template_says_so(tmp_path):
    made = ChatTemplate()
    made.load(tmp_path, None)
    with pytest.raises(TemplateError, match="template not found"):
        made.render([USER])
    with pytest.raises(TemplateError, match="template not found"):
        loaded(tmp_path, None, **SPECIAL_TOKENS).render([USER])


def test_special_tokens_are_texts_or_objects_and_others_are_absent(tmp_path):
    template = "{{ bos_token }}{{ eos_token }}" + "".join(
        f"{{{{ {name} is defined }}}}" for name in ("pad_token", "add_bos_token", "unk_token")
    )
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None, "add_bos_token": True}
    assert loaded(tmp_path, template, **tokens).render([USER]) == "<s></s>FalseFalseFalse"


def test_of_several_named_templates_the_default_one_counts(tmp_path):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert loaded(tmp_path, named).render([USER]) == "plain"
    with pytest.raises(TemplateError, match="template not found"):
        loaded(tmp_path, named[:1]).render([USER])


def test_a_template_file_of_the_folder_wins_over_the_tokenizer_config(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"chat_template": "processor"}))
    assert loaded(tmp_path).render([USER]) == "processor"
    assert loaded(tmp_path, "config").render([USER]) == "config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "file"}))
    assert loaded(tmp_path, "config").render([USER]) == "file"
    (tmp_path / "chat_template.jinja").write_text("jinja {{ bos_token }}")
    assert loaded(tmp_path, "config", bos_token="<s>").render([USER]) == "jinja <s>"


def test_a_config_that_was_given_wins_over_all_that_is_in_the_folder(tmp_path):
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"chat_template": "given {{ bos_token }}", "bos_token": "<b>"}))
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert loaded(tmp_path, "config", path=given, bos_token="<s>").render([USER]) == "given <b>"


def test_a_config_that_was_given_and_is_not_there_is_a_one_line_error(tmp_path):
    with pytest.raises(ConfigurationError, match="--tokenizer-config-path: there is no file") as caught:
        loaded(tmp_path, "config", path=tmp_path / "nowhere.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", ["{% for %}", "{{ message | unheard_of }}", "{% endif %}", "{{ 'open"])
def test_a_template_that_is_none_is_a_one_line_error(tmp_path, template):
    with pytest.raises(ConfigurationError, match=r"chat template of .* is none") as caught:
        loaded(tmp_path, template)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_a_config_that_cannot_be_read_is_a_one_line_error(tmp_path, content):
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"cannot be read|is no JSON") as caught:
        ChatTemplate().load(tmp_path, None)
    assert "\n" not in str(caught.value)


def test_a_template_file_that_is_no_text_is_a_one_line_error(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ChatTemplate().load(tmp_path, None)


@pytest.mark.parametrize("named", [[{"template": "no name"}], ["text"]])
def test_a_list_of_templates_without_a_default_one_is_no_template(tmp_path, named):
    with pytest.raises(TemplateError, match="template not found"):
        loaded(tmp_path, named).render([USER])


INSIDES = [
    "{{ ().__class__.__base__.__subclasses__() }}",
    "{{ dict.mro() }}",
    "{{ dict.__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ (messages | attr('__class__')).__mro__ }}",
    "{{ messages | map(attribute='__class__.__mro__') | first | first }}",
    "{{ '{0.__class__.__mro__}'.format(messages)[0] }}",
]


@pytest.mark.parametrize("template", INSIDES)
def test_a_template_that_reaches_for_pythons_insides_is_refused(tmp_path, template):
    with pytest.raises(TemplateError):
        loaded(tmp_path, template).render([USER])


MUTATIONS = [
    *("messages.append(1)", "messages.pop()", "messages[0].update({'role': 'x'})", "messages[0].clear()"),
    "dict.update(messages[0], {'role': 'x'})",
]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_template_that_changes_the_conversation_is_refused(tmp_path, mutation):
    messages: list[Message] = [dict(USER)]
    with pytest.raises(TemplateError):
        loaded(tmp_path, f"{{% set _ = {mutation} %}}").render(messages)
    assert messages == [USER]


def test_a_template_that_would_count_for_ever_is_refused(tmp_path):
    with pytest.raises(TemplateError, match="Range too big"):
        loaded(tmp_path, "{% for _ in range(10000000000) %}{% endfor %}").render([USER])


def test_json_keeps_letters_and_signs_as_they_are(tmp_path):
    rendered = loaded(tmp_path, "{{ messages[0] | tojson }}").render([SYSTEM | {"content": "<é> & 日"}])
    assert rendered == '{"role": "system", "content": "<é> & 日"}'


@pytest.mark.parametrize("options", ["ensure_ascii=False", "sort_keys=True", "separators=(',', ':')", "True, 2"])
def test_json_takes_the_options_that_it_has_in_transformers(reference, tmp_path, options):
    template = f"{{{{ messages | tojson({options}) }}}}"
    expected = reference.apply_chat_template([USER], chat_template=template, tokenize=False)
    assert loaded(tmp_path, template).render([USER]) == expected


def test_a_template_can_tell_the_date(tmp_path):
    days = [datetime.datetime.now().strftime("%d %b %Y")]
    rendered = loaded(tmp_path, "{{ strftime_now('%d %b %Y') }}").render([USER])
    assert rendered in [*days, datetime.datetime.now().strftime("%d %b %Y")]
