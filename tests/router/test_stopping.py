from hypothesis import given
from hypothesis import strategies as st

from text_generation_router.stopping import StoppingCriteria

EOS = frozenset({2, 7})


def cut(text: str, data: st.DataObject) -> list[str]:
    """The text in pieces, some of them empty."""
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in zip([0, *borders], [*borders, len(text)], strict=True)]


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
    ends = [text.find(sequence) + len(sequence) for sequence in stop if sequence in text]
    expected = (text[: min(ends)], "stop_sequence") if ends else (text, None)
    assert push_all(StoppingCriteria(99, EOS, stop), cut(text, data)) == expected


def without_stop(stop: list[str]) -> StoppingCriteria:
    return StoppingCriteria(99, EOS, stop, keep_stop=False)


def test_a_stop_sequence_that_is_not_kept_is_cut_off_with_what_follows():
    assert push_all(without_stop(["\n\n"]), ["one", " two\n\nthree"]) == ("one two", "stop_sequence")
    assert push_all(without_stop(["ROMEO:"]), ["a R", "OM", "EO", ": b"]) == ("a ", "stop_sequence")


def test_what_may_become_a_stop_sequence_is_held_back_until_that_is_clear():
    criteria = without_stop(["abc", "x"])
    assert [criteria.push_text(piece)[0] for piece in ["1a", "b", "b", "ab"]] == ["1", "", "abb", ""]
    assert criteria.flush() == "ab"
    assert criteria.flush() == ""


def test_text_is_not_held_back_for_a_stop_sequence_that_stays():
    assert StoppingCriteria(9, EOS, ["abc"]).push_text("ab") == ("ab", None)


def test_without_held_text_the_end_brings_nothing_more():
    assert without_stop([]).flush() == ""
    criteria = without_stop(["abc"])
    assert criteria.push_text("abd") == ("abd", None) and criteria.flush() == ""


def test_a_false_start_within_a_stop_sequence_is_given_out_and_its_rest_still_found():
    assert push_all(without_stop(["aab"]), ["a", "a", "a", "b", "c"]) == ("a", "stop_sequence")


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_any_cut_into_tokens_gives_the_text_before_the_stop_sequence_that_ends_first(text, stop, data):
    ends = [text.find(sequence) + len(sequence) for sequence in stop if sequence in text]
    begins = [end - len(sequence) for sequence in stop for end in [min(ends, default=0)] if text[:end].endswith(sequence)]
    criteria, passed, reason = without_stop(stop), "", None
    for piece in cut(text, data):
        certain, reason = criteria.push_text(piece)
        passed += certain
        assert text.startswith(passed)
        assert not any(sequence in passed for sequence in stop)
        if reason:
            break
    if ends:
        assert reason == "stop_sequence" and passed in {text[:begin] for begin in begins}
    else:
        assert reason is None and passed + criteria.flush() == text
