"""Generation: a static batch of texts, run by the shard itself for clients without a router.

In: a GenerateRequest. Out: for each step the GenerateResponses of its tokens. It writes the same Steps that a router would,
so that the runner knows only one way to work; every rank runs it alike. The only file of the server that knows text.
"""

import dataclasses
from collections.abc import Iterator

from tokenizers import Tokenizer

from text_generation_proto.shard_pb2 import GenerateRequest, GenerateResponse, Step
from text_generation_server.errors import StepError
from text_generation_server.runner import Runner
from text_generation_server.sampling import Sampling

DEFAULT_MAX_NEW_TOKENS = 20


@dataclasses.dataclass(slots=True)
class _Row:
    """One input on its way. Its sequence id is its index."""

    index: int
    token_ids: list[int]
    block_ids: range
    num_computed: int = 0
    num_prompt_tokens: int = dataclasses.field(init=False)
    finish_reason: str = ""
    num_characters_sent: int = 0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def generated(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]


class Generation:
    def __init__(self, request: GenerateRequest, runner: Runner, tokenizer: Tokenizer) -> None:
        """
        Raises:
            StepError: empty inputs or stop sequences, a parameter out of range, or more tokens than the model has positions,
                the KV cache holds or a step computes, where it must compute a prompt as a whole.
        """
        self.request = request
        self.runner = runner
        self.tokenizer = tokenizer
        self.max_new_tokens = request.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        Sampling.from_proto(request.sampling)
        if not all(request.stop):
            raise StepError("stop sequences cannot be empty")
        decoding = runner.model.decoding
        if decoding and decoding.max_new_tokens and self.max_new_tokens > decoding.max_new_tokens:
            raise StepError(f"at most {decoding.max_new_tokens} new tokens of an input")
        self.rows = self._rows(list(request.inputs))

    def steps(self) -> Iterator[list[GenerateResponse]]:
        """Runs to the end, a forward at each `next`.

        Raises:
            StepError: a forward failed.
        """
        step = self._first_step()
        while active := [row for row in self.rows if not row.finish_reason]:
            self._add_work(step, active)
            result = self.runner.execute(step)
            if result.error:
                raise StepError(result.error)
            yield [self._respond(self.rows[token.sequence_id], token.token_id, token.logprob) for token in result.tokens]
            step = Step(id=step.id + 1)

    def _rows(self, inputs: list[str]) -> list[_Row]:
        if not inputs or not all(inputs):
            raise StepError("inputs cannot be empty")
        rows, next_block = [], 0
        for index, text in enumerate(inputs):
            token_ids = self.tokenizer.encode(text).ids
            num_blocks = -(-(len(token_ids) + self.max_new_tokens) // self.runner.block_size)
            if not token_ids:
                raise StepError("inputs cannot be empty")
            if len(token_ids) + self.max_new_tokens > self.runner.max_positions:
                most = f"the model has {self.runner.max_positions} positions"
                raise StepError(f"{most}, input {index} needs {len(token_ids)} and max_new_tokens {self.max_new_tokens}")
            if len(token_ids) > self.runner.max_batch_tokens and not self.runner.model.chunked_prefill:
                raise StepError(f"at most {self.runner.max_batch_tokens} tokens of an input")
            rows.append(_Row(index, token_ids, range(next_block, next_block + num_blocks)))
            next_block += num_blocks
        if next_block > self.runner.num_blocks:
            raise StepError(f"inputs and max_new_tokens need {next_block} KV blocks, there are {self.runner.num_blocks}")
        if len(rows) > self.runner.max_batch_tokens:
            raise StepError(f"at most {self.runner.max_batch_tokens} inputs")
        return rows

    def _first_step(self) -> Step:
        step = Step(id=0)
        for row in self.rows:
            step.add.add(
                id=row.index,
                token_ids=row.token_ids,
                num_prompt_tokens=row.num_prompt_tokens,
                sampling=self.request.sampling,
                max_new_tokens=self.max_new_tokens,
            )
        return step

    def _add_work(self, step: Step, active: list[_Row]) -> None:
        """What each row has not computed yet, in chunks that fit the budget: its prompt, then one token a step."""
        budget = self.runner.max_batch_tokens
        for row in active:
            length = min(len(row.token_ids) - row.num_computed, budget)
            is_part = length < len(row.token_ids) - row.num_computed
            if length == 0 or (is_part and not self.runner.model.chunked_prefill):
                continue
            work = step.work.add(sequence_id=row.index, start=row.num_computed, length=length)
            if row.num_computed == 0:
                work.block_ids.extend(row.block_ids)
            row.num_computed += length
            work.sample = row.num_computed == len(row.token_ids)
            budget -= length

    def _respond(self, row: _Row, token_id: int, logprob: float) -> GenerateResponse:
        row.token_ids.append(token_id)
        text = self.tokenizer.decode(row.generated)
        row.finish_reason = self._finish_reason(row, token_id, text)
        response = GenerateResponse(index=row.index, token_id=token_id, logprob=logprob, finish_reason=row.finish_reason)
        if row.finish_reason or not text.endswith("\ufffd"):  # half a character waits for its other half, or for the end
            response.text = text[row.num_characters_sent :]
            row.num_characters_sent = len(text)
        if row.finish_reason:
            response.generated_text = text
        return response

    def _finish_reason(self, row: _Row, token_id: int, text: str) -> str:
        if token_id in self.runner.folder.eos_token_ids:
            return "eos_token"
        if any(stop in text for stop in self.request.stop):
            return "stop_sequence"
        return "length" if len(row.generated) == self.max_new_tokens else ""
