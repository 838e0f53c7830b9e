"""llama.cpp's decode steps, in a Python of its own: nothing but llama-cpp-python and the standard library is there.

In: a JSON object on standard input (int8_peers.py writes it): a GGUF file, batches of prompts, how many tokens to make. It
is stored in Q8_0 first, whatever it is in: a step costs the same, even if an already quantized file does not get better.
Out: a JSON list of each batch's readings of the clock in seconds, one a step, on the last line of standard output.
"""

import ctypes
import json
import sys
import tempfile
import time

import llama_cpp


def load(file: str, num_positions: int, num_threads: int) -> llama_cpp.Llama:
    with tempfile.TemporaryDirectory(prefix="text-generation-llama-cpp-") as temporary:
        stored = f"{temporary}/model.gguf"
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
        parameters.allow_requantize = True
        parameters.nthread = num_threads
        if llama_cpp.llama_model_quantize(file.encode(), stored.encode(), ctypes.byref(parameters)):
            raise RuntimeError(f"llama.cpp does not store {file} in Q8_0")
        return llama_cpp.Llama(
            stored, n_ctx=num_positions, n_threads=num_threads, n_threads_batch=num_threads, verbose=False
        )


def readings(model: llama_cpp.Llama, prompt: list[int], num_tokens: int) -> list[float]:
    """When each token was there. This binding decodes one sequence at a time."""
    model.reset()
    model.eval(prompt)
    seconds = []
    for _ in range(num_tokens):
        token_id = model.sample(temp=0.0)
        seconds.append(time.perf_counter())
        model.eval([token_id])
    return seconds


def main() -> None:
    wanted = json.load(sys.stdin)
    prompts = [prompt for (prompt,) in wanted["batches"]]
    num_positions = max(map(len, prompts)) + wanted["num_tokens"]
    model = load(wanted["file"], num_positions, wanted["num_threads"])
    print(json.dumps([readings(model, prompt, wanted["num_tokens"]) for prompt in prompts]))


if __name__ == "__main__":
    main()
