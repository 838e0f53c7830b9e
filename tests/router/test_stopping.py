from hypothesis import given
from hypothesis import strategies as st

from text_generation_router.stopping import StoppingCriteria

EOS = frozenset({2, 7})


def push_all(criteria: StoppingCriteria, pieces: list[str]) -> tuple[str, str | None]:
    text = ""
    for piece in pieces:
        kept, reason = criteria.push_text(piece)
        text += kept
        if reason:
            return text, reason
    return text, None


def test_the_last_allowed_token_ends_by_length():
    criteria = StoppingCriteria(3, EOS)
    assert [criteria.ends_by_token(5) for _ in range(3)] == [None, None, "length"]


def test_any_end_of_sequence_token_ends():
    assert StoppingCriteria(3, EOS).ends_by_token(2) == "eos_token"
    assert StoppingCriteria(3, EOS).ends_by_token(7) == "eos_token"


def test_an_end_of_sequence_token_that_is_the_last_allowed_one_counts_as_such():
    assert StoppingCriteria(1, EOS).ends_by_token(2) == "eos_token"


def test_the_stop_sequence_stays_and_what_follows_it_goes():
    assert push_all(StoppingCriteria(9, EOS, ["\n\n"]), ["one", " two\n\nthree", "four"]) == ("one two\n\n", "stop_sequence")


def test_a_stop_sequence_is_found_across_tokens():
    assert push_all(StoppingCriteria(9, EOS, ["ROMEO:"]), ["a R", "OM", "EO", ": b"]) == ("a ROMEO:", "stop_sequence")


def test_a_false_start_does_not_hide_a_stop_sequence():
    assert push_all(StoppingCriteria(9, EOS, ["aab"]), ["a", "a", "a", "b", "c"]) == ("aaab", "stop_sequence")


def test_of_several_stop_sequences_the_one_that_ends_first_counts():
    assert push_all(StoppingCriteria(9, EOS, ["abcd", "c"]), ["ab", "cd"]) == ("abc", "stop_sequence")


def test_text_without_a_stop_sequence_passes_whole():
    assert push_all(StoppingCriteria(9, EOS, ["xyz"]), ["ab", "", "xy"]) == ("abxy", None)
    assert push_all(StoppingCriteria(9, EOS), ["ab", "cd"]) == ("abcd", None)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_any_cut_into_tokens_gives_what_a_search_in_the_whole_text_gives(text, stop, data):
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[start:end] for start, end in zip([0, *borders], [*borders, len(text)], strict=True)]
    ends = [text.find(sequence) + len(sequence) for sequence in stop if sequence in text]
    expected = (text[: min(ends)], "stop_sequence") if ends else (text, None)
    assert push_all(StoppingCriteria(99, EOS, stop), pieces) == expected
