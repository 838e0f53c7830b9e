"""lm-eval's `local-completions` rates local examples by log-likelihood, end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = [
    {"context": "ROMEO", "choices": [":", " banana"], "answer": 0},
    {"context": "I thank you, my", "choices": [" lord", " xylophone"], "answer": 0},
    {"context": "Good morrow, my", "choices": [" 5", " good lord"], "answer": 1},
    {"context": "KING RICHARD", "choices": [" the the", " III:"], "answer": 1},
]
TASK = """
task: tiny_play
dataset_path: json
dataset_kwargs: {{data_files: {{test: {examples}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_a_multiple_choice_task_is_answered_right(url: str, embedded_model: Path, tmp_path: Path) -> None:
    examples = tmp_path / "examples.jsonl"
    examples.write_text("\n".join(map(json.dumps, EXAMPLES)))
    (tmp_path / "tiny_play.yaml").write_text(TASK.format(examples=examples))
    model_args = f"model=tgi,base_url={url}/v1/completions,tokenizer={embedded_model},num_concurrent=2"
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", model_args]
    command += ["--tasks", "tiny_play", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "results.json")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert process.returncode == 0, process.stderr[-2000:]
    (file,) = tmp_path.glob("**/results*.json")
    assert json.loads(file.read_text())["results"]["tiny_play"]["acc,none"] == 1.0
