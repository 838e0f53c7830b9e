import asyncio
import pathlib
import threading

import pytest
import tokenizers

import tiny_tokenizers
from text_generation_router.errors import ConfigurationError
from text_generation_router.tokenizer import Tokenizer


def loaded(saved: tokenizers.Tokenizer, folder: pathlib.Path, num_workers: int = 1) -> Tokenizer:
    tiny_tokenizers.save(saved, folder)
    tokenizer = Tokenizer(num_workers)
    tokenizer.load(folder)
    return tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    tokenizer = loaded(tiny_tokenizers.metaspace(), tmp_path, num_workers=2)
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def byte_level(tmp_path):
    tokenizer = loaded(tiny_tokenizers.byte_level(), tmp_path)
    yield tokenizer
    tokenizer.close()


async def test_encoding_adds_the_special_tokens_of_the_model(tokenizer):
    token_ids = await tokenizer.encode("To be")
    assert token_ids[0] == 1
    assert "".join(tokenizer.detokenizer().push(token_id) for token_id in token_ids) == " To be"


async def test_a_text_that_brings_its_own_special_tokens_gets_no_others(tokenizer):
    with_them = await tokenizer.encode("To be")
    assert await tokenizer.encode("To be", add_special_tokens=False) == with_them[1:]
    assert await tokenizer.encode("<s>To be", add_special_tokens=False) == with_them


@pytest.mark.parametrize("add_special_tokens", [True, False])
async def test_spans_are_the_characters_that_each_token_stands_for(tokenizer, add_special_tokens):
    text = "To be, señor 日本"
    spans = await tokenizer.encode_spans(text, add_special_tokens)
    assert [span.token_id for span in spans] == await tokenizer.encode(text, add_special_tokens)
    words = [span for span in spans if span.token_id not in tokenizer.special_token_ids]
    assert "".join(text[span.start : span.end] for span in words) == text
    assert [(span.start, span.end) for span in spans[: len(spans) - len(words)]] == [(0, 0)] * add_special_tokens


async def test_what_takes_long_runs_in_another_thread_and_its_error_comes_back(tokenizer):
    assert await tokenizer.in_worker(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await tokenizer.in_worker(lambda number: 1 // number, 0)


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


async def test_any_token_has_a_text_and_bytes_of_its_own(byte_level):
    for text in (" be", "日"):
        token_ids = await byte_level.encode(text)
        assert b"".join(map(byte_level.token_bytes, token_ids)) == text.encode()
    assert "".join(map(byte_level.token_text, await byte_level.encode(" to be"))) == " to be"
    assert (byte_level.token_text(2), byte_level.token_bytes(2)) == ("</s>", b"</s>")
    assert (byte_level.token_text(100_000), byte_level.token_bytes(100_000)) == ("", b"")
    assert all(isinstance(byte_level.token_text(token_id), str) for token_id in range(400))


async def test_a_part_of_a_character_looks_like_one_and_has_its_bytes(byte_level):
    parts = await byte_level.encode("👾")  # never seen in training
    assert len(parts) > 1 and "\ufffd" in byte_level.token_text(parts[0])
    assert b"".join(map(byte_level.token_bytes, parts)) == "👾".encode()


async def test_a_prompt_of_token_ids_is_told_whole(byte_level):
    assert byte_level.decode([1, *await byte_level.encode("To be")]) == "<s>To be"


def test_special_tokens_are_known_with_their_texts(tokenizer):
    assert {tokenizer.token_text(token_id) for token_id in tokenizer.special_token_ids} == {*tiny_tokenizers.SPECIAL_TOKENS}


async def test_a_length_limit_saved_in_the_file_does_not_cut_prompts(tmp_path):
    saved = tiny_tokenizers.byte_level()
    saved.enable_truncation(3)
    saved.enable_padding(length=8)
    tokenizer = loaded(saved, tmp_path)
    assert len(await tokenizer.encode("abcdefghijklmnop")) > 8
    assert len(await tokenizer.encode("z")) == 1


def test_a_folder_without_a_tokenizer_is_a_one_line_error(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no tokenizer\.json in .*give the folder of the model") as caught:
        Tokenizer(num_workers=1).load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "unheard-of"}}'])
def test_a_file_that_is_no_tokenizer_is_a_one_line_error(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigurationError, match="cannot be read as a tokenizer") as caught:
        Tokenizer(num_workers=1).load(tmp_path)
    assert "\n" not in str(caught.value)
