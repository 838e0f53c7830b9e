import asyncio

import pytest

import tiny_tokenizers
from text_generation_router.errors import ConfigurationError
from text_generation_router.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    tokenizer = Tokenizer(tiny_tokenizers.save(tiny_tokenizers.metaspace(), tmp_path), num_workers=2)
    yield tokenizer
    tokenizer.close()


async def test_encoding_adds_the_special_tokens_of_the_model(tokenizer):
    token_ids = await tokenizer.encode("To be")
    assert token_ids[0] == 1
    assert "".join(tokenizer.detokenizer().push(token_id) for token_id in token_ids) == " To be"


async def test_texts_are_encoded_at_the_same_time_and_each_gets_its_own_tokens(tokenizer):
    texts = ["To be", "or not", "日本"] * 5
    assert await asyncio.gather(*map(tokenizer.encode, texts)) == [await tokenizer.encode(text) for text in texts]


async def test_the_event_loop_goes_on_while_a_long_text_is_encoded(tokenizer):
    encoding = asyncio.ensure_future(tokenizer.encode("To be or not " * 20_000))
    num_turns = 0
    while not encoding.done():
        await asyncio.sleep(0.001)
        num_turns += 1
    assert num_turns > 3


def test_special_tokens_are_known_with_their_texts(tokenizer):
    assert {tokenizer.token_text(token_id) for token_id in tokenizer.special_token_ids} == {*tiny_tokenizers.SPECIAL_TOKENS}


async def test_a_length_limit_saved_in_the_file_does_not_cut_prompts(tmp_path):
    saved = tiny_tokenizers.byte_level()
    saved.enable_truncation(3)
    saved.enable_padding(length=8)
    tokenizer = Tokenizer(tiny_tokenizers.save(saved, tmp_path), num_workers=1)
    assert len(await tokenizer.encode("abcdefghijklmnop")) > 8
    assert len(await tokenizer.encode("z")) == 1


def test_a_folder_without_a_tokenizer_is_a_one_line_error(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no tokenizer\.json in .*give the folder of the model") as caught:
        Tokenizer(str(tmp_path), num_workers=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "unheard-of"}}'])
def test_a_file_that_is_no_tokenizer_is_a_one_line_error(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigurationError, match="cannot be read as a tokenizer") as caught:
        Tokenizer(str(tmp_path), num_workers=1)
    assert "\n" not in str(caught.value)
