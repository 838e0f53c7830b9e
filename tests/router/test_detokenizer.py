import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

import tiny_tokenizers
from text_generation_router.detokenizer import _BYTE_OF_CHARACTER, Detokenizer, TokenBytes

BYTE_LEVEL = tiny_tokenizers.byte_level()
METASPACE = tiny_tokenizers.metaspace()
TOKEN_BYTES = {id(tokenizer): TokenBytes(tokenizer) for tokenizer in (BYTE_LEVEL, METASPACE)}
both = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE], ids=["byte_level", "metaspace"])


def pieces(tokenizer, token_ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(TOKEN_BYTES[id(tokenizer)])
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


def byte_ids(tokenizer, data: bytes) -> list[int]:
    """One token per byte."""
    names = {byte: character for character, byte in _BYTE_OF_CHARACTER.items()}
    return [
        tokenizer.token_to_id(names[byte] if tokenizer is BYTE_LEVEL else f"<0x{byte:02X}>") for byte in data
    ]


def test_the_byte_alphabet_is_the_one_of_the_library():
    assert set(_BYTE_OF_CHARACTER) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(_BYTE_OF_CHARACTER.values()) == list(range(256))


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=30))
def test_byte_level_pieces_of_any_tokens_add_up_to_what_the_library_decodes(token_ids):
    assert "".join(pieces(BYTE_LEVEL, token_ids)) == BYTE_LEVEL.decode(token_ids, skip_special_tokens=True)


@both
@settings(max_examples=200)
@given(prompt=st.text(min_size=1), text=st.text())
def test_prompt_and_pieces_add_up_to_what_the_library_decodes(tokenizer, prompt, text):
    prompt_ids = tokenizer.encode("To be" + prompt).ids
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = tokenizer.decode(prompt_ids + token_ids, skip_special_tokens=True)
    assert tokenizer.decode(prompt_ids, skip_special_tokens=True) + "".join(pieces(tokenizer, token_ids)) == whole


@both
def test_no_piece_holds_half_a_character(tokenizer):
    for text in ("é", "日", "🙂", "👨‍👩‍👧"):
        token_ids = byte_ids(tokenizer, text.encode())
        assert "\ufffd" not in "".join(pieces(tokenizer, token_ids))
        assert "".join(pieces(tokenizer, token_ids)) == text


@both
def test_a_character_comes_with_its_last_byte(tokenizer):
    assert pieces(tokenizer, byte_ids(tokenizer, "🙂a".encode())) == ["", "", "", "🙂", "a", ""]


@both
def test_bytes_that_are_no_character_hold_nothing_back(tokenizer):
    assert pieces(tokenizer, byte_ids(tokenizer, b"\xff\xffa\xff")) == ["\ufffd", "\ufffd", "a", "\ufffd", ""]


@both
def test_a_character_after_bytes_that_are_none_is_not_lost(tokenizer):
    token_ids = byte_ids(tokenizer, b"\xff" * 20 + "日".encode())
    assert "".join(pieces(tokenizer, token_ids)) == "\ufffd" * 20 + "日"


@both
def test_a_character_that_stays_unfinished_comes_out_at_the_end_as_one_replacement(tokenizer):
    assert pieces(tokenizer, byte_ids(tokenizer, "🙂".encode()[:3])) == ["", "", "", "\ufffd"]


@both
def test_a_replacement_character_that_the_model_meant_is_not_held_back(tokenizer):
    assert "".join(pieces(tokenizer, byte_ids(tokenizer, "\ufffd".encode()))[:-1]) == "\ufffd"


@both
def test_special_tokens_and_ids_without_a_token_add_nothing(tokenizer):
    ids = tokenizer.encode("be", add_special_tokens=False).ids
    assert "".join(pieces(tokenizer, [1, *ids, 2, 100_000, 3])) == "".join(pieces(tokenizer, ids))


def test_the_first_piece_keeps_the_space_between_prompt_and_answer():
    assert pieces(METASPACE, METASPACE.encode("be or", add_special_tokens=False).ids)[0].startswith(" ")


def test_an_added_token_outside_the_byte_alphabet_is_its_own_text():
    tokenizer = tiny_tokenizers.byte_level()
    tokenizer.add_tokens(["<|日 x|>"])
    detokenizer = Detokenizer(TokenBytes(tokenizer))
    assert detokenizer.push(tokenizer.token_to_id("<|日 x|>")) == "<|日 x|>"
