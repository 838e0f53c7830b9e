import pytest

import tiny_tokenizers
from text_generation_router.api.token_logprobs import TokenLogprobs
from text_generation_router.sequence import PromptScore, Request, Sequence
from text_generation_router.stream import TokenEvent
from text_generation_router.tokenizer import Tokenizer


@pytest.fixture
def rated(tokenizer):
    return TokenLogprobs(tokenizer)


def add_text(rated, tokenizer, text):
    detokenizer = tokenizer.detokenizer()
    for token_id in tokenizer._encode(text, False):
        rated.add_token(TokenEvent(token_id, detokenizer.push(token_id), -0.5, False, []))


def test_offsets_count_characters_and_parts_of_one_share_its_place(rated, tokenizer):
    add_text(rated, tokenizer, "A🦜B")  # the bird is three tokens
    assert rated.take().text_offset == [0, 1, 1, 1, 2]


def test_parts_of_a_character_have_names_of_their_own(rated, tokenizer):
    add_text(rated, tokenizer, "🦜")
    tokens = rated.take().tokens
    assert all(token.startswith("bytes:\\x") for token in tokens) and len(set(tokens)) == len(tokens)


def test_what_the_whole_text_does_not_begin_with_is_not_counted(tokenizer):
    rated = TokenLogprobs(tokenizer, num_hidden=1)
    add_text(rated, tokenizer, " AB")
    tokens = rated.take()
    assert [" AB".find(token.strip()) - 1 for token in tokens.tokens if token.strip()] == tokens.text_offset[-2:] == [0, 1]


def test_what_was_taken_is_not_there_again_and_offsets_go_on(rated, tokenizer):
    add_text(rated, tokenizer, "AB")
    assert rated.take().text_offset == [0, 1]
    assert rated.take().tokens == []
    add_text(rated, tokenizer, "C")
    assert rated.take().text_offset == [2]


def test_a_token_is_among_its_own_alternatives(rated, tokenizer):
    one, two, three = tokenizer._encode("ABC", False)
    rated.add_token(TokenEvent(one, "A", -3.0, False, [(two, -0.5), (three, -1.0)]))
    assert rated.take().top_logprobs == [{"A": -3.0, "B": -0.5, "C": -1.0}]


def test_a_prompt_that_was_not_rated_counts_for_the_offsets_only(rated, tokenizer):
    rated.add_prompt(Sequence(0, Request(tokenizer._encode("AB", False), 1)), "AB")
    assert rated.take().tokens == []
    add_text(rated, tokenizer, "C")
    assert rated.take().text_offset == [2]


def offsets(tokenizer, token_ids, text):
    rated = TokenLogprobs(tokenizer)
    rated.add_prompt(Sequence(0, Request(token_ids, 1, prompt_logprobs=True)), text)
    add_text(rated, tokenizer, "C")
    return rated.take().text_offset


def test_special_tokens_of_a_prompt_have_their_names(rated, tokenizer):
    sequence = Sequence(0, Request([1, *tokenizer._encode("A", False)], 1, prompt_logprobs=True))
    sequence.prompt_scores[1] = PromptScore(-0.75, [])
    rated.add_prompt(sequence, "A")
    taken = rated.take()
    assert (taken.tokens, taken.token_logprobs, taken.text_offset) == (["<s>", "A"], [None, -0.75], [0, 0])


def test_special_tokens_that_are_shown_take_their_place(tokenizer):
    token_ids = [1, *tokenizer._encode("A", False), 2]
    assert offsets(tokenizer, token_ids, "<s>A</s>") == [0, 3, 4, 8]


def test_what_a_tokenizer_puts_before_a_text_is_not_in_it(tmp_path):
    tiny_tokenizers.save(tiny_tokenizers.metaspace(), tmp_path)
    tokenizer = Tokenizer(num_workers=1)
    tokenizer.load(tmp_path)
    token_ids = tokenizer._encode("To be", True)
    assert [tokenizer.token_text(token_id) for token_id in token_ids] == ["<s>", " To", " be"]
    rated = TokenLogprobs(tokenizer)
    rated.add_prompt(Sequence(0, Request(token_ids, 1, prompt_logprobs=True)), "To be")
    assert rated.take().text_offset == [0, 0, 2]
    tokenizer.close()
