"""One stream by itself: what its tokens' texts and their ends come to."""

import pytest

import tiny_tokenizers
from text_generation_router.sequence import Request, Sequence
from text_generation_router.stopping import StoppingCriteria
from text_generation_router.stream import GenerationStream, Mailbox, TokenEvent
from text_generation_router.tokenizer import Tokenizer

EOS = 2


@pytest.fixture
def tokenizer(tmp_path):
    tiny_tokenizers.save(tiny_tokenizers.metaspace(), tmp_path)
    tokenizer = Tokenizer(num_workers=1)
    tokenizer.load(tmp_path)
    yield tokenizer
    tokenizer.close()


async def pushed(tokenizer, token_ids, begins_text=False, max_new_tokens=50, **asked) -> tuple[list[TokenEvent], list[bool]]:
    """The events of the tokens, and what the engine was told after each: whether a stop sequence ended it."""
    request, mailbox = Request([5], max_new_tokens, **asked), Mailbox()
    criteria = StoppingCriteria(max_new_tokens, [EOS], request.stop, request.keep_stop)
    stream = GenerationStream(Sequence(0, request), criteria, tokenizer, mailbox, lambda stream: None, begins_text)
    stopped = [stream.push(token_id, -1.0, [], stream.ends_by_token(token_id)) for token_id in token_ids]
    return [(await mailbox.get())[1] for _ in token_ids], stopped


async def special(tokenizer, name):
    [token_id] = await tokenizer.encode(name, add_special_tokens=False)
    return token_id


@pytest.mark.parametrize("keep_stop", [True, False])
async def test_a_special_token_can_be_a_stop_sequence_though_it_has_no_text(tokenizer, keep_stop):
    text = await tokenizer.encode("To be", add_special_tokens=False)
    token_ids = [*text, await special(tokenizer, "<pad>")]
    events, stopped = await pushed(tokenizer, token_ids, stop=("or", "<pad>"), keep_stop=keep_stop)
    assert stopped == [False] * len(text) + [True]
    assert (events[-1].finish_reason, events[-1].generated_text) == ("stop_sequence", " To be")


async def test_a_stop_that_is_the_last_allowed_token_too_is_a_stop(tokenizer):
    text = await tokenizer.encode("To be", add_special_tokens=False)
    for last, stop in ((text[-1], " be"), (await special(tokenizer, "<pad>"), "<pad>")):
        events, _ = await pushed(tokenizer, [text[0], last], max_new_tokens=2, stop=(stop,))
        assert events[-1].finish_reason == "stop_sequence"


async def test_a_special_token_that_was_not_asked_for_ends_nothing(tokenizer):
    events, stopped = await pushed(tokenizer, [await special(tokenizer, "<pad>")], stop=("<s>",))
    assert stopped == [False] and events[0].finish_reason is None


async def test_the_end_of_sequence_is_called_that_even_where_it_is_a_stop_sequence_too(tokenizer):
    events, _ = await pushed(tokenizer, [EOS], stop=("</s>",))
    assert events[0].finish_reason == "eos_token"


@pytest.mark.parametrize(("begins_text", "answer"), [(True, "To be"), (False, " To be")])
async def test_an_answer_that_is_a_text_of_its_own_does_not_begin_with_the_tokenizers_space(tokenizer, begins_text, answer):
    """As the original has it: the answer is without it, the first token's text is not."""
    token_ids = [await special(tokenizer, "<pad>"), *(await tokenizer.encode("To be", add_special_tokens=False)), EOS]
    events, _ = await pushed(tokenizer, token_ids, begins_text)
    assert events[-1].generated_text == answer
    assert "".join(event.text for event in events) == " To be"


async def test_only_one_space_is_the_tokenizers(tokenizer):
    token_ids = await tokenizer.encode("   To", add_special_tokens=False)
    events, _ = await pushed(tokenizer, [*token_ids, EOS], begins_text=True)
    assert events[-1].generated_text == tokenizer.decode(token_ids) == "  To"
