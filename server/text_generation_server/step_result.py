"""StepResult: what a step's sequences are told of it, as the message says it.

In: chunks and what was sampled after them, prompts and how likely they were. Out: more of a StepResult. Messages are written
field by field, and lists only where there is something in them: a GPU waits for this.
"""

from collections.abc import Sequence

from text_generation_proto.shard_pb2 import StepResult
from text_generation_server.batch import PromptRows
from text_generation_server.logprobs import TokenLogprobs
from text_generation_server.sampler import Sampled
from text_generation_server.sequences import Chunk


def add_tokens(result: StepResult, chunks: Sequence[Chunk], sampled: Sampled) -> None:
    """Enters them in their sequences too. Of a chunk with guesses, the tokens up to the first one that was guessed wrong, and
    that one's right one."""
    first_row = 0
    for chunk in chunks:
        if not chunk.sample:
            continue
        end_row = first_row + len(chunk.guesses) + 1
        num_right = chunk.accept(sampled.token_ids[first_row:end_row])
        for row in range(first_row, first_row + num_right + 1):
            token = result.tokens.add()
            token.sequence_id = chunk.sequence.id
            token.token_id = sampled.token_ids[row]
            token.logprob = sampled.logprobs[row]
            if sampled.top_ids[row]:
                token.top_token_ids.extend(sampled.top_ids[row])
                token.top_logprobs.extend(sampled.top_logprobs[row])
        first_row = end_row


def add_prompts(result: StepResult, prompts: Sequence[PromptRows], found: Sequence[TokenLogprobs]) -> None:
    for prompt, tokens in zip(prompts, found, strict=True):
        result.prompts.add(
            sequence_id=prompt.sequence.id,
            start=prompt.positions.start,
            logprobs=tokens.logprobs.tolist(),
            top_token_ids=tokens.top_ids.flatten().tolist(),
            top_logprobs=tokens.top_logprobs.flatten().tolist(),
        )
