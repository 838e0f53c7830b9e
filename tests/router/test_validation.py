import asyncio

import pytest

import tiny_tokenizers
from fake_engine import LIMITS
from text_generation_router.errors import ValidationError
from text_generation_router.schema import GenerateParameters, GenerateRequest
from text_generation_router.sequence import Request
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import Validation

NUM_AAAA = 4  # tokens of "AAAA": the tokenizers never saw the letter, so it has no merges


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    folder = tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path_factory.mktemp("model"))
    tokenizer = Tokenizer(folder, num_workers=1)
    yield Validation(tokenizer, max_stop_sequences=4)
    tokenizer.close()


def check(validation: Validation, inputs: str = "AAAA", streamed: bool = False, **parameters) -> Request:
    body = GenerateRequest(inputs, GenerateParameters(**parameters))
    return asyncio.run(validation.check(body, LIMITS, streamed=streamed))


REFUSALS = [
    ({"temperature": 0.0}, "`temperature` must be strictly positive"),
    ({"temperature": -1.0}, "`temperature` must be strictly positive"),
    ({"temperature": 1e-60}, "`temperature` must be strictly positive"),
    ({"temperature": 1e60}, "`temperature` must be finite"),
    ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
    ({"repetition_penalty": -0.5}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"frequency_penalty": -2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_p": 0.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"top_p": 1 - 1e-12}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"top_k": -1}, "`top_k` must be strictly positive"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"max_new_tokens": -1}, "`max_new_tokens` must be strictly positive"),
    ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"stop": [""]}, "`stop` sequences cannot be empty"),
    ({"inputs": ""}, "`inputs` cannot be empty"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than 20. Given: 0"),
    ({"truncate": 21}, "`truncate` must be strictly positive and less than 20. Given: 21"),
    (
        {"max_new_tokens": 29},
        "`inputs` tokens + `max_new_tokens` must be <= 32. Given: 4 `inputs` tokens and 29 `max_new_tokens`",
    ),
    ({"inputs": "A" * 21, "max_new_tokens": 1}, "`inputs` must have less than 20 tokens. Given: 21"),
    ({"inputs": "A" * 50}, "`inputs` must have less than 20 tokens. Given: 50"),
    ({"seed": -1}, "`seed` must be >= 0 and <= 18446744073709551615. Given: -1"),
    ({"seed": 2**64}, "`seed` must be >= 0 and <= 18446744073709551615. Given: 18446744073709551616"),
    ({"typical_p": 0.9}, "`typical_p` is not supported by this server yet"),
    ({"frequency_penalty": 0.1}, "`frequency_penalty` is not supported by this server yet"),
    ({"watermark": True}, "`watermark` is not supported by this server yet"),
    ({"top_n_tokens": 1}, "`top_n_tokens` is not supported by this server yet"),
    ({"grammar": {"type": "regex", "value": "a"}}, "`grammar` is not supported by this server yet"),
    ({"adapter_id": "lora"}, "`adapter_id` is not supported by this server yet"),
]
REFUSALS_UNSTREAMED = [
    ({"best_of": 2}, "`best_of` is not supported by this server yet"),
    ({"decoder_input_details": True}, "`decoder_input_details` is not supported by this server yet"),
]
REFUSALS_STREAMED = [
    ({"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
    ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported when streaming tokens"),
]


@pytest.mark.parametrize(
    ("streamed", "given", "message"),
    [
        *((streamed, *row) for streamed in (False, True) for row in REFUSALS),
        *((False, *row) for row in REFUSALS_UNSTREAMED),
        *((True, *row) for row in REFUSALS_STREAMED),
    ],
)
def test_what_cannot_be_run_is_refused_in_the_words_of_the_original(validation, streamed, given, message):
    with pytest.raises(ValidationError) as caught:
        check(validation, streamed=streamed, **given)
    assert str(caught.value) == f"Input validation error: {message}"


def test_the_first_of_several_mistakes_is_told_in_the_order_of_the_original(validation):
    wrong = [{"temperature": 0.0}, {"top_p": 2.0}, {"top_k": 0}, {"max_new_tokens": 0}, {"stop": list("abcde")}]
    wrong += [{"inputs": ""}, {"truncate": 0}]
    for position, first in enumerate(wrong):
        with pytest.raises(ValidationError, match=next(iter(first))):
            check(validation, **{name: value for row in wrong[position:] for name, value in row.items()})


def test_neutral_values_of_what_is_not_there_yet_pass(validation):
    check(validation, best_of=1, frequency_penalty=0.0, top_n_tokens=0, watermark=False, details=True)


@pytest.mark.parametrize("body", [GenerateRequest("AAAA"), GenerateRequest("AAAA", GenerateParameters())])
def test_a_request_without_wishes_is_greedy_and_may_fill_what_is_left(validation, body):
    request = asyncio.run(validation.check(body, LIMITS, streamed=False))
    assert not request.sampling.do_sample
    assert (len(request.prompt_token_ids), request.max_new_tokens) == (NUM_AAAA, 32 - NUM_AAAA)


@pytest.mark.parametrize("wish", [{"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.5}, {"do_sample": True}])
def test_each_wish_that_only_sampling_can_fulfil_turns_it_on(validation, wish):
    assert check(validation, **wish).sampling.do_sample


@pytest.mark.parametrize("wish", [{"temperature": 1.0}, {"repetition_penalty": 1.2}, {"seed": 3}])
def test_wishes_that_greedy_fulfils_too_leave_it_greedy(validation, wish):
    assert not check(validation, **wish).sampling.do_sample


def test_every_parameter_reaches_the_request(validation):
    request = check(
        validation, temperature=0.5, top_k=5, top_p=0.25, repetition_penalty=1.5, seed=2**64 - 1, stop=["a", "b"],
        max_new_tokens=3,
    )  # fmt: skip
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 5, 0.25)
    assert (sampling.repetition_penalty, sampling.seed) == (1.5, 2**64 - 1)
    assert (request.stop, request.max_new_tokens) == (("a", "b"), 3)


def test_a_request_without_a_seed_gets_one_of_its_own(validation):
    seeds = {check(validation, do_sample=True).sampling.seed for _ in range(20)}
    assert len(seeds) == 20 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_prompt_as_long_as_the_limit_is_allowed(validation):
    assert len(check(validation, inputs="A" * 20, max_new_tokens=12).prompt_token_ids) == 20


def test_truncation_keeps_the_end_of_the_prompt_and_comes_before_the_length_check(validation):
    kept = check(validation, inputs="A" * 50 + "BCD", truncate=3).prompt_token_ids
    assert kept == check(validation, inputs="BCD").prompt_token_ids
    assert len(check(validation, inputs="A" * 50, truncate=20).prompt_token_ids) == 20
    assert len(check(validation, truncate=20).prompt_token_ids) == NUM_AAAA
