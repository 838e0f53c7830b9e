"""What follows is guessed from where the same was said before."""

from text_generation_server.prompt_lookup import PromptLookup


def test_the_tokens_after_the_last_occurrence_are_guessed():
    lookup = PromptLookup()
    lookup.learn(2, 2)  # hopeful
    assert lookup.guess([1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 7, 1, 2, 3], 4) == [5, 6, 7, 1]


def test_a_longer_agreement_counts_more_than_a_later_one():
    assert PromptLookup().guess([1, 2, 3, 4, 8, 2, 3, 5, 1, 2, 3], 1) == [4]


def test_without_an_occurrence_nothing_is_guessed():
    lookup = PromptLookup()
    assert lookup.guess([], 4) == lookup.guess([1], 4) == lookup.guess([1, 2, 3, 4], 4) == []


def test_no_more_is_guessed_than_wanted():
    lookup = PromptLookup()
    lookup.learn(4, 4)
    tokens = [1, 2, 3, 1, 2]
    assert lookup.guess(tokens, 0) == lookup.guess(tokens, -1) == []
    assert lookup.guess(tokens, 2) == [3, 1]


def test_beyond_what_is_known_a_text_is_guessed_to_go_in_circles():
    for tokens, following in (([1, 2, 3, 1, 2], [3, 1, 2, 3, 1, 2, 3, 1]), ([7, 5, 5, 5], [5] * 8)):
        lookup = PromptLookup()
        lookup.learn(4, 4)
        assert lookup.guess(tokens, 9) == following


def test_tokens_that_came_since_are_found():
    lookup = PromptLookup()
    tokens = [1, 2, 3]
    assert lookup.guess(tokens, 1) == []
    tokens += [4, 1, 2]
    assert lookup.guess(tokens, 1) == [3]


def test_success_makes_it_bolder_and_failure_cautious():
    tokens = [1, 2, *range(3, 30), 1, 2]
    lookup, counts = PromptLookup(), []
    for num_right in (1, 2, 4, 1, 0):
        counts.append(len(lookup.guess(tokens, 16)))
        lookup.learn(counts[-1], num_right)
    assert counts == [1, 2, 4, 8, 2] and len(lookup.guess(tokens, 16)) == 1
