"""Models whose folder brings the code that defines them: refused, unless a person says to trust it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from random_models import save_random_model
from runner_steps import generate, make_runner
from text_generation_server.config import ShardConfig
from text_generation_server.errors import ConfigurationError, ModelError
from text_generation_server.models import ModelFolder
from text_generation_server.parallel import Parallel
from text_generation_server.runner import Runner

PROMPT = [1, 5, 77, 42, 9]
AUTO_MAP = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
CODE = '''
from transformers import LlamaConfig, LlamaForCausalLM
from .own_part import turn


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    """Not a Llama: what is likely there is unlikely here."""
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = turn(output.logits)
        return output
'''


@pytest.fixture(autouse=True)
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies the code to before it runs it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = save_random_model(tmp_path / "model", "llama")
    (folder / "modeling_own.py").write_text(CODE)
    (folder / "own_part.py").write_text("def turn(logits):\n    return -logits\n")
    return describe(folder, "own")


def describe(folder: Path, model_type: str) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": AUTO_MAP}))
    return folder


def run(folder: Path) -> Runner:
    config = ShardConfig(str(folder), dtype="float32", kv_cache_gib=0.02, trust_remote_code=True)
    return Runner(config, ModelFolder.read(folder, trust_remote_code=True), Parallel(), torch.device("cpu"))


def test_code_that_nobody_trusts_is_not_run_and_the_line_says_what_to_pass(folder: Path) -> None:
    (folder / "modeling_own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ModelError, match="code of its own for 'own': read it, and pass --trust-remote-code to run it"):
        ModelFolder.read(folder)


def test_trusted_code_is_what_answers(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False)[0, len(PROMPT) :].tolist()
    assert generate(run(folder), PROMPT, 8)[0] == expected


def test_a_type_that_transformers_knows_needs_no_code(folder: Path) -> None:
    describe(folder, "llama")
    without, with_code = generate(make_runner(folder), PROMPT, 8)[0], generate(run(folder), PROMPT, 8)[0]
    assert ModelFolder.read(folder).model_type == "llama" and without != with_code


def test_several_shards_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="on one shard only: --num-shard 1"):
        ModelFolder.read(folder, trust_remote_code=True).check_world_size(2)


@pytest.mark.parametrize("code", ["import no_such_package", "def", "undefined_name", "OwnConfig = 1"])
def test_code_that_cannot_be_used_is_said_in_one_line(folder: Path, code: str) -> None:
    (folder / "modeling_own.py").write_text(code)
    with pytest.raises(ModelError, match="transformers does not know the model of") as caught:
        run(folder)
    assert "\n" not in str(caught.value)


def test_code_of_another_repository_is_refused_before_any_runs(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    elsewhere = AUTO_MAP | {"AutoModelForCausalLM": "someone/models--modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": elsewhere}))
    (folder / "modeling_own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ModelError, match="wants code of another repository, someone/models--"):
        ModelFolder.read(folder, trust_remote_code=True)
