from text_generation_router.sequence import Request, Sequence, Status


def sequence(num_prompt_tokens: int = 4, max_new_tokens: int = 3) -> Sequence:
    return Sequence(1, Request(list(range(num_prompt_tokens)), max_new_tokens))


def test_a_new_sequence_waits_with_all_of_its_prompt_to_compute():
    new = sequence()
    assert (new.status, new.finished) == (Status.WAITING, False)
    assert (new.num_prompt_tokens, new.num_tokens, new.num_unscheduled, new.num_generated) == (4, 4, 4, 0)


def test_its_tokens_are_its_own():
    new = sequence()
    new.token_ids.append(9)
    assert new.request.prompt_token_ids == [0, 1, 2, 3] and new.num_generated == 1


def test_a_token_that_is_being_sampled_is_already_one_to_compute():
    new = sequence()
    new.num_scheduled, new.num_pending = 4, 1
    assert (new.num_tokens, new.num_unscheduled, new.num_generated) == (5, 1, 0)


def test_the_limit_is_reached_when_the_last_token_is_on_its_way():
    new = sequence(max_new_tokens=3)
    new.token_ids += [7]
    new.num_pending = 1
    assert not new.reaches_limit
    new.num_pending = 2
    assert new.reaches_limit
    new.token_ids += [7, 7]
    new.num_pending = 0
    assert new.reaches_limit
