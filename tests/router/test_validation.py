import asyncio
import dataclasses

import pytest

import tiny_tokenizers
from fake_engine import LIMITS
from text_generation_router.config import RouterConfig
from text_generation_router.errors import ValidationError
from text_generation_router.schema.generate import GenerateParameters
from text_generation_router.sequence import Request, SamplingParameters
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import OpenAIParameters, Prompt, Validation, copies

NUM_AAAA = 4  # tokens of "AAAA": the tokenizers never saw two of the letter, so it has no merges
NO_WISHES = OpenAIParameters()
WITH_ENCODER = dataclasses.replace(LIMITS, max_new_tokens=8, decoder_start_token_id=7)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), folder)
    tokenizer = Tokenizer(num_workers=1)
    tokenizer.load(folder)
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def validation(tokenizer):
    return Validation(tokenizer, RouterConfig(tokenizer_path=""))


def check(validation, prompt="AAAA", openai=None, streamed=False, limits=LIMITS, **parameters) -> Request:
    prompt = Prompt(prompt) if isinstance(prompt, str) else Prompt(token_ids=prompt)
    return asyncio.run(validation.check(prompt, GenerateParameters(**parameters), limits, openai, streamed=streamed))


# What each route refuses, and in which words, is in api/test_refusals.py.


def test_the_first_of_several_mistakes_is_told_in_the_order_of_the_original(validation):
    wrong = [
        ("`best_of` must be > 0", {"best_of": 3}),
        ("`temperature`", {"temperature": 0.0}),
        ("`repetition_penalty`", {"repetition_penalty": 0.0}),
        ("`frequency_penalty`", {"frequency_penalty": 3.0}),
        ("`top_p`", {"top_p": 2.0}),
        ("`typical_p`", {"typical_p": 2.0}),
        ("`top_k`", {"top_k": 0}),
        ("`max_new_tokens` must be strictly", {"max_new_tokens": 0}),
        ("`stop`", {"stop": list("abcde")}),
        ("`seed` must not be set", {"seed": 1, "best_of": 2, "do_sample": True}),
        ("`top_n_tokens`", {"top_n_tokens": 6}),
        ("`inputs` cannot be empty", {"prompt": ""}),
        ("`truncate`", {"truncate": 0}),
        ("`max_new_tokens` must be <= 32", {"prompt": "A" * 21, "max_new_tokens": 12}),
        ("must have less than 20 tokens", {"prompt": "A" * 21}),
        ("grammar is not supported", {"grammar": {}}),
    ]
    for position, (message, _) in enumerate(wrong):
        given = {name: value for _, row in reversed(wrong[position:]) for name, value in row.items()}
        with pytest.raises(ValidationError) as caught:
            check(validation, **given)
        assert message in str(caught.value)


def test_a_stream_is_told_of_best_of_before_of_anything_else(validation):
    with pytest.raises(ValidationError, match="not supported when streaming tokens"):
        check(validation, streamed=True, best_of=2, temperature=0.0)


@pytest.mark.parametrize("error", [TypeError("no such text"), ValueError("no such text")])
def test_a_text_that_the_tokenizer_cannot_read_is_refused(tokenizer, error):
    class Broken:
        async def encode(self, text, add_special_tokens):
            raise error

    with pytest.raises(ValidationError, match="Input validation error: tokenizer error no such text"):
        check(Validation(Broken(), RouterConfig(tokenizer_path="")))


def test_neutral_values_are_as_good_as_none(validation):
    request = check(
        validation, best_of=1, temperature=1.0, repetition_penalty=1.0, frequency_penalty=0.0, top_n_tokens=0, stop=[],
        watermark=False,
    )  # fmt: skip
    assert (request.sampling, request.stop, request.num_top_tokens) == (SamplingParameters(), (), 0)


def test_a_request_without_wishes_is_greedy_and_may_fill_what_is_left(validation):
    request = check(validation)
    assert request.sampling == SamplingParameters()
    assert (len(request.prompt_token_ids), request.max_new_tokens) == (NUM_AAAA, 32 - NUM_AAAA)
    assert request.keep_stop and not request.prompt_logprobs


@pytest.mark.parametrize(
    "wish", [{"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.5}, {"typical_p": 0.5}, {"do_sample": True}]
)
def test_each_wish_that_only_sampling_can_fulfil_turns_it_on(validation, wish):
    assert check(validation, **wish).sampling.do_sample


@pytest.mark.parametrize(
    "wish",
    [{"temperature": 1.0}, {"repetition_penalty": 1.2}, {"frequency_penalty": 0.5}, {"seed": 3}, {"watermark": True}],
)
def test_wishes_that_greedy_fulfils_too_leave_it_greedy(validation, wish):
    sampling = check(validation, **wish).sampling
    assert (sampling.do_sample, sampling.seed) == (False, 0)


def test_every_parameter_reaches_the_request(validation):
    request = check(
        validation, temperature=0.5, top_k=5, top_p=0.25, typical_p=0.75, repetition_penalty=1.5, frequency_penalty=0.5,
        watermark=True, seed=2**64 - 1, stop=["a", "b"], max_new_tokens=3, top_n_tokens=5, decoder_input_details=True,
    )  # fmt: skip
    assert request.sampling == SamplingParameters(
        do_sample=True, temperature=0.5, top_k=5, top_p=0.25, typical_p=0.75, repetition_penalty=1.5,
        frequency_penalty=0.5, watermark=True, seed=2**64 - 1,
    )  # fmt: skip
    assert (request.stop, request.max_new_tokens, request.num_top_tokens) == (("a", "b"), 3, 5)
    assert request.prompt_logprobs


def test_with_openais_parameters_stop_sequences_are_cut_off_and_more_alternatives_allowed(validation):
    openai = OpenAIParameters(presence_penalty=-0.5, logit_bias={"5": 100, "339": -100})
    request = check(validation, openai=openai, stop=["a"], top_n_tokens=20)
    assert (request.keep_stop, request.num_top_tokens) == (False, 20)
    assert (request.sampling.presence_penalty, request.sampling.logit_bias) == (-0.5, {5: 100, 339: -100})


@pytest.mark.parametrize("name", ["9" * 5000, "-1", "٣", "5.0", "", " 5", "1_0", "+5"])
def test_names_of_biased_tokens_are_plain_numbers_within_the_vocabulary(validation, name):
    with pytest.raises(ValidationError, match="`logit_bias`"):
        check(validation, openai=OpenAIParameters(logit_bias={name: 1.0}))


def test_a_request_without_a_seed_gets_one_of_its_own(validation):
    seeds = {check(validation, do_sample=True).sampling.seed for _ in range(20)}
    assert len(seeds) == 20 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_copies_of_a_request_differ_in_their_seeds_only(validation, seed):
    request = check(validation, do_sample=True, seed=seed)
    first, *others = copies(request, 3)
    assert first is request
    assert [copy.sampling.seed for copy in others] == [(seed + 1) % 2**64, (seed + 2) % 2**64]
    assert {(tuple(copy.prompt_token_ids), copy.max_new_tokens, copy.sampling.do_sample) for copy in others} == {
        (tuple(request.prompt_token_ids), request.max_new_tokens, True)
    }


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_temperatures_that_a_32_bit_float_can_hold_are_allowed(validation, temperature):
    assert check(validation, temperature=temperature).sampling.temperature == pytest.approx(temperature)


def test_a_prompt_as_long_as_the_limit_is_allowed(validation):
    assert len(check(validation, "A" * 20, max_new_tokens=12).prompt_token_ids) == 20


def test_truncation_keeps_the_end_of_the_prompt_and_comes_before_the_length_check(validation):
    kept = check(validation, "A" * 50 + "BCD", truncate=3).prompt_token_ids
    assert kept == check(validation, "BCD").prompt_token_ids
    assert len(check(validation, "A" * 50, truncate=20).prompt_token_ids) == 20
    assert len(check(validation, truncate=20).prompt_token_ids) == NUM_AAAA


def test_token_ids_are_taken_as_they_are(validation):
    assert check(validation, [1, 5, 339, 0], openai=NO_WISHES).prompt_token_ids == [1, 5, 339, 0]


@pytest.mark.parametrize("add", [True, False])
def test_special_tokens_are_added_unless_a_chat_template_put_its_own(tmp_path, add):
    tiny_tokenizers.save(tiny_tokenizers.metaspace(), tmp_path)
    tokenizer = Tokenizer(num_workers=1)
    tokenizer.load(tmp_path)
    validation = Validation(tokenizer, RouterConfig(tokenizer_path=""))
    prompt = Prompt("To be", add_special_tokens=add)
    request = asyncio.run(validation.check(prompt, GenerateParameters(), LIMITS))
    tokenizer.close()
    assert (request.prompt_token_ids[0] == 1) is add and request.prompt_token_ids.count(1) == add


def test_a_decoder_with_positions_of_its_own_says_no_more_than_it_has(validation):
    assert check(validation, limits=WITH_ENCODER).max_new_tokens == 8
    assert check(validation).max_new_tokens == LIMITS.max_total_tokens - NUM_AAAA
    with pytest.raises(ValidationError, match=r"`max_new_tokens` must be <= 8\. Given: 9"):
        check(validation, limits=WITH_ENCODER, max_new_tokens=9)


def test_what_a_decoder_begins_with_is_shown_instead_of_a_prompt_that_is_only_read(validation):
    request = check(validation, limits=WITH_ENCODER, decoder_input_details=True)
    assert (request.prompt_logprobs, request.shown_start_token_id) == (False, 7)
    assert check(validation, limits=WITH_ENCODER).shown_start_token_id is None
    with pytest.raises(ValidationError, match="`echo` with `logprobs` is not supported"):
        check(validation, limits=WITH_ENCODER, openai=NO_WISHES, decoder_input_details=True)
