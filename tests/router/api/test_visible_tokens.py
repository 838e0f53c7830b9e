import pytest

import tiny_tokenizers
from text_generation_router.api.visible_tokens import VisibleTokens
from text_generation_router.sequence import Request, Sequence
from text_generation_router.stopping import StoppingCriteria
from text_generation_router.stream import GenerationStream, Mailbox, TokenEvent
from text_generation_router.tokenizer import Tokenizer

EOS = 2


@pytest.fixture
def tokenizer(tmp_path):
    tokenizer = Tokenizer(num_workers=1)
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)
    tokenizer.load(tmp_path)
    return tokenizer


async def events_of(tokenizer: Tokenizer, text: str, stop: tuple[str, ...] = ()) -> list[TokenEvent]:
    """What a stream makes of the tokens of `text` and an end-of-sequence token."""
    token_ids = [*await tokenizer.encode(text, add_special_tokens=False), EOS]
    mailbox, request = Mailbox(), Request([5], 99, stop=stop, keep_stop=False)
    criteria = StoppingCriteria(99, {EOS}, stop, keep_stop=False)
    stream = GenerationStream(Sequence(0, request), criteria, tokenizer, mailbox, lambda stream: None)
    events = []
    for token_id in token_ids:
        stopped = stream.push(token_id, -0.5, [], stream.ends_by_token(token_id))
        events.append((await mailbox.get())[1])
        if stopped:
            break
    return events


def shown_texts(tokenizer: Tokenizer, events: list[TokenEvent]) -> list[str]:
    visible = VisibleTokens(tokenizer)
    return [tokenizer.token_text(shown.token_id) for event in events for shown in visible.push(event)]


async def test_every_token_of_the_text_shows_at_once_and_the_end_does_not(tokenizer):
    events = await events_of(tokenizer, "to be")
    visible = VisibleTokens(tokenizer)
    assert [visible.push(event) == [event] for event in events] == [True] * (len(events) - 1) + [False]


async def test_tokens_of_a_stop_sequence_that_is_cut_off_do_not_show(tokenizer):
    events = await events_of(tokenizer, "hello STOP and more", stop=("STOP",))
    assert "".join(event.text for event in events) == "hello "
    assert "".join(shown_texts(tokenizer, events)) == "hello "


async def test_tokens_that_only_looked_like_a_stop_sequence_show_when_that_is_clear(tokenizer):
    events = await events_of(tokenizer, "hello STORM", stop=("STOP",))
    assert "".join(shown_texts(tokenizer, events)) == "hello STORM"


async def test_the_parts_of_a_character_show_with_it(tokenizer):
    events = await events_of(tokenizer, "日")
    assert len(shown_texts(tokenizer, events)) == len(events) - 1 > 1


async def test_a_byte_that_is_no_character_lets_no_token_of_a_stop_sequence_through(tokenizer):
    """It comes out as U+FFFD, which has more bytes than it."""
    [broken] = [token_id for token_id in range(340) if tokenizer.token_bytes(token_id) == b"\xff"]
    text = await tokenizer.encode("OK STOP", add_special_tokens=False)
    request, mailbox = Request([5], 99, stop=("STOP",), keep_stop=False), Mailbox()
    criteria = StoppingCriteria(99, {EOS}, ("STOP",), keep_stop=False)
    stream = GenerationStream(Sequence(0, request), criteria, tokenizer, mailbox, lambda stream: None)
    events = []
    for token_id in [broken] * 3 + text:
        stream.push(token_id, -0.5, [], stream.ends_by_token(token_id))
        events.append((await mailbox.get())[1])
    assert "".join(event.text for event in events) == "\ufffd\ufffd\ufffdOK "
    assert "".join(shown_texts(tokenizer, events)) == "\ufffd\ufffd\ufffdOK "
