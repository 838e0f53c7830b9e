"""CTranslate2's decode steps, in a Python of its own: nothing but ctranslate2, transformers and the standard library is there.

In: a JSON object on standard input (int8_peers.py writes it): a model folder, a storage, batches of prompts, how many tokens
to make. Out: a JSON list of each batch's readings of the clock in seconds, one a step, on the last line of standard output.
"""

import json
import sys
import tempfile
import time
from typing import Any

import ctranslate2
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer


def load(folder: str, kind: str, num_threads: int) -> ctranslate2.Generator:
    with tempfile.TemporaryDirectory(prefix="text-generation-ctranslate2-") as temporary:
        converted = f"{temporary}/model"
        TransformersConverter(folder).convert(converted, quantization=kind)
        return ctranslate2.Generator(converted, device="cpu", compute_type=kind, intra_threads=num_threads)


def readings(generator: ctranslate2.Generator, prompts: list[list[str]], num_tokens: int) -> list[float]:
    """When the last sequence of the batch had each of its tokens."""
    by_step: dict[int, float] = {}

    def look(result: Any) -> bool:
        by_step[result.step] = time.perf_counter()
        return False  # go on

    results = generator.generate_batch(
        prompts, max_length=num_tokens, min_length=num_tokens, include_prompt_in_result=False, callback=look
    )
    assert all(len(result.sequences_ids[0]) == num_tokens for result in results), "the peer ended early"
    return list(by_step.values())


def main() -> None:
    wanted = json.load(sys.stdin)
    vocabulary = Tokenizer.from_file(f"{wanted['folder']}/tokenizer.json").get_vocab()
    names = {token_id: name for name, token_id in vocabulary.items()}
    generator = load(wanted["folder"], wanted["kind"], wanted["num_threads"])
    batches = [[[names[token_id] for token_id in prompt] for prompt in prompts] for prompts in wanted["batches"]]
    print(json.dumps([readings(generator, prompts, wanted["num_tokens"]) for prompts in batches]))


if __name__ == "__main__":
    main()
