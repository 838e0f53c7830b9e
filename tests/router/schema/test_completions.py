import json

import pytest

from text_generation_router.errors import ValidationError
from text_generation_router.schema.body import decode
from text_generation_router.schema.completions import CompletionRequest


def read(**fields):
    return decode(json.dumps({"prompt": "A"} | fields).encode(), CompletionRequest)


@pytest.mark.parametrize("name", sorted(set(CompletionRequest.__struct_fields__) - {"prompt"}))
def test_clients_that_send_what_they_do_not_set_as_null_are_understood(name):
    assert getattr(read(**{name: None}), name) is None


@pytest.mark.parametrize("prompt", ["A", ["A", "B"], [1, 2], [[1, 2], [3]], []])
def test_a_prompt_is_a_text_texts_token_ids_or_lists_of_them(prompt):
    assert read(prompt=prompt).prompt == prompt


@pytest.mark.parametrize("prompt", [None, 1, {"a": 1}, [1.5], [["A"]], [None], [True]])
def test_anything_else_is_no_prompt(prompt):
    with pytest.raises(ValidationError, match=r"`\$\.prompt"):
        read(prompt=prompt)
