"""What steps cost is learned from them, and the next ones follow."""

import pytest

from text_generation_router.pace import MAX_ITERATIONS, MIN_PREFILL_TOKENS, PREFILL_SHARE, UNKNOWN, Pace


def learned(decode_seconds: float, token_seconds: float) -> Pace:
    pace = Pace()
    for _ in range(50):
        pace.learn_decode(1, decode_seconds)
        pace.learn_prefill(100, True, decode_seconds + 100 * token_seconds)
    return pace


def test_prompts_add_to_a_step_of_others_no_more_than_a_share_of_it():
    pace = learned(decode_seconds=0.1, token_seconds=0.002)
    seconds = 0.1 + 0.002 * pace.max_prefill_tokens
    assert seconds == pytest.approx((1 + PREFILL_SHARE) * 0.1, rel=0.05)


def test_prompts_are_not_starved_where_they_are_dear():
    assert learned(decode_seconds=0.001, token_seconds=1.0).max_prefill_tokens == MIN_PREFILL_TOKENS


def test_before_anything_is_known_nothing_is_limited():
    pace = Pace()
    pace.learn_prefill(100, True, 5.0)  # of which nobody knows how much was the prompt's
    assert (pace.max_prefill_tokens, pace.num_iterations) == (UNKNOWN, 1)


def test_tokens_that_cost_nothing_may_be_twice_as_many_each_time():
    assert learned(decode_seconds=0.1, token_seconds=0.0).max_prefill_tokens == 200


def test_what_few_tokens_seem_to_cost_is_not_believed_of_many():
    """The first 40 tokens of a step hide behind the weights that it reads; then each takes its time."""
    pace, longest = learned(decode_seconds=0.05, token_seconds=0.0015), 0.0
    pace.learn_prefill(10, True, 0.05)
    for _ in range(60):
        num_tokens = pace.max_prefill_tokens
        seconds = 0.05 + 0.0015 * max(0, num_tokens - 40)
        longest = max(longest, seconds)
        pace.learn_prefill(num_tokens, True, seconds)
    assert longest < 0.05 * (1 + 2 * PREFILL_SHARE)
    assert 0.05 * (1 + 0.5 * PREFILL_SHARE) < seconds < 0.05 * (1 + 1.2 * PREFILL_SHARE)


@pytest.mark.parametrize(
    ("router_seconds", "num_iterations"), [(0.0001, 1), (0.001, 1), (0.003, 3), (1.0, MAX_ITERATIONS)]
)
def test_shards_decode_on_their_own_while_the_router_works(router_seconds: float, num_iterations: int):
    pace = learned(decode_seconds=0.001, token_seconds=0.0)
    pace.learn_router(router_seconds)
    assert pace.num_iterations == num_iterations


def test_a_step_of_several_iterations_counts_as_so_many():
    pace = Pace()
    pace.learn_decode(4, 0.004)
    pace.learn_router(0.002)
    assert pace.num_iterations == 2


def test_a_step_of_prompts_alone_is_all_theirs():
    """Streams took longer a step than this prompt, which came when they had ended: it was not for nothing."""
    pace = Pace()
    pace.learn_decode(1, 0.1)
    pace.learn_prefill(20, False, 0.08)
    assert 0.004 * pace.max_prefill_tokens == pytest.approx(PREFILL_SHARE * 0.1, rel=0.05)


def test_a_few_tokens_alone_say_nothing():
    pace = learned(decode_seconds=0.1, token_seconds=0.002)
    before = pace.max_prefill_tokens
    pace.learn_prefill(2, False, 0.05)
    assert pace.max_prefill_tokens == before


def test_it_follows_a_change():
    pace = learned(decode_seconds=0.1, token_seconds=0.002)
    before = pace.max_prefill_tokens
    for _ in range(30):
        pace.learn_decode(1, 0.3)
    assert pace.max_prefill_tokens > 2 * before
