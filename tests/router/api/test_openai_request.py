import pytest

from text_generation_router.api.openai_request import Envelope, finish_reason, num_choices
from text_generation_router.errors import ValidationError


@pytest.mark.parametrize(
    ("reason", "told"), [("length", "length"), ("eos_token", "stop"), ("stop_sequence", "stop"), (None, "stop")]
)
def test_openai_knows_two_of_our_ends(reason, told):
    assert finish_reason(reason) == told


@pytest.mark.parametrize(("asked", "number"), [(None, 1), (1, 1), (128, 128)])
def test_one_choice_unless_more_are_asked_for(asked, number):
    assert num_choices("n", asked) == number


@pytest.mark.parametrize("asked", [0, -1, 129, 10**30])
def test_choices_are_limited(asked):
    with pytest.raises(ValidationError, match=f"`n` must be > 0 and <= 128. Given: {asked}"):
        num_choices("n", asked)


def test_every_answer_has_a_name_of_its_own():
    assert len({Envelope.new("cmpl", "tiny").id for _ in range(100)}) == 100
