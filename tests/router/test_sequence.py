from text_generation_router.sequence import Request, Sequence, Status


def sequence(num_prompt_tokens: int = 4, max_new_tokens: int = 3) -> Sequence:
    return Sequence(1, Request(list(range(num_prompt_tokens)), max_new_tokens))


def test_a_new_sequence_waits_with_all_of_its_prompt_to_compute():
    new = sequence()
    assert (new.status, new.finished) == (Status.WAITING, False)
    assert (new.num_prompt_tokens, new.num_tokens, new.num_unscheduled) == (4, 4, 4)


def test_its_tokens_are_its_own():
    new = sequence()
    new.token_ids.append(9)
    assert new.request.prompt_token_ids == [0, 1, 2, 3] and new.num_prompt_tokens == 4


def test_a_token_that_is_being_sampled_is_already_one_to_compute():
    new = sequence()
    new.num_scheduled, new.num_pending = 4, 1
    assert (new.num_tokens, new.num_unscheduled) == (5, 1)


def test_it_wants_a_token_when_its_prompt_is_behind_it_until_the_last_one_is_on_its_way():
    new = Sequence(0, Request([0, 1, 2, 3], max_new_tokens=2))
    assert not new.wants_token
    new.num_scheduled, new.num_pending = 4, 1
    assert new.wants_token
    new.num_scheduled, new.num_pending = 5, 2
    assert not new.wants_token
    new.num_pending, new.token_ids = 1, [*new.token_ids, 7]
    assert not new.wants_token
