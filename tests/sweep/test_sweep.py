"""The table of model types is true: every type that it says is served answers as transformers does, on as many shards as it
says. A sample of them at each run of the tests, all of them with `make test-models`."""

from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from random_models import EXCLUDED, save_random_model
from sweep import serve_and_compare
from text_generation_server.model_table import ModelRow, ModelTable

TABLE = ModelTable.read()
# One of each way through the server; the last number is that of shards.
SAMPLE = {("bloom", 1), ("gpt_oss", 2), ("gptj", 1), ("jamba", 1), ("openai-gpt", 1), ("t5", 2)}
CASES = [(row, world_size) for row in TABLE.served for world_size in map(int, row.shards.split(", "))]


@pytest.mark.parametrize(
    ("row", "world_size"),
    [
        pytest.param(
            row,
            world_size,
            id=f"{row.model_type}-{row.kind}-{world_size}",
            marks=[] if (row.model_type, world_size) in SAMPLE else pytest.mark.models,
        )
        for row, world_size in CASES
    ],
)
def test_answers_are_those_of_transformers(tmp_path: Path, row: ModelRow, world_size: int) -> None:
    seq2seq = row.kind == "encoder-decoder"
    model = save_random_model(tmp_path / "model", row.model_type, seq2seq)
    served = serve_and_compare(model, tmp_path / "run", world_size, seq2seq, row.model_type)
    assert (served.path, served.is_paged) == (row.path, row.paged)


def test_every_model_type_of_transformers_is_in_the_table_or_has_its_reason() -> None:
    of_transformers = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    assert of_transformers <= {row.model_type for row in TABLE.rows} | {*EXCLUDED}
    assert all(row.path or row.note for row in TABLE.rows)


def test_as_many_types_are_served_as_the_project_promises() -> None:
    assert len(TABLE.served) >= 150
    assert len(TABLE.paged) >= 110
    assert len(TABLE.split) >= 80
