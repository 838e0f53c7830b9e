"""The truth: what transformers' own `generate` answers to a prompt on its own, greedy, in float32."""

import dataclasses
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

TIE = 1e-4  # reference logits closer than this may fall either way


@dataclasses.dataclass(frozen=True)
class Answer:
    token_ids: list[int]
    logprobs: list[float]
    gaps: list[float]  # between the best and the second best logit at each token


class Reference:
    def __init__(self, model: Path, seq2seq: bool = False, stops: bool = True) -> None:
        """`stops`: at the end-of-sequence token, as a router does, and a shard does not."""
        auto_class = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        self.model = auto_class.from_pretrained(model, dtype=torch.float32)
        self.seq2seq = seq2seq
        if not stops:
            self.model.generation_config.eos_token_id = None

    def generate(self, prompt: list[int], max_new_tokens: int, use_cache: bool = True) -> Answer:
        output = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            use_cache=use_cache,
            do_sample=False,
            num_beams=1,
            output_scores=True,
            return_dict_in_generate=True,
        )
        given = 1 if self.seq2seq else len(prompt)  # what a decoder begins with
        token_ids = output.sequences[0, given:].tolist()
        logits = torch.cat(output.scores)  # [num_generated, vocab_size]
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None]).squeeze(1)
        best = logits.topk(2).values
        return Answer(token_ids, logprobs.tolist(), (best[:, 0] - best[:, 1]).tolist())


def compare(answer: Answer, token_ids: list[int], logprobs: list[float], tolerance: float = 1e-3) -> int:
    """Asserts that a served answer is the reference's. Returns 1 where they part at a tie, else 0."""
    for position, (expected, actual) in enumerate(zip(answer.token_ids, token_ids, strict=False)):
        if expected != actual:
            assert answer.gaps[position] < TIE, f"token {position}: {actual} for {expected}, gap {answer.gaps[position]}"
            return 1
        assert abs(answer.logprobs[position] - logprobs[position]) < tolerance, f"logprob of token {position}"
    assert len(token_ids) == len(answer.token_ids)
    return 0
