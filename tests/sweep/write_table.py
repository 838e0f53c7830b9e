"""Serves every model type once more and writes what held into server/text_generation_server/models.csv.

    python tests/sweep/write_table.py [TYPE …]      all of them, or only these anew
"""

import argparse
import csv
import datetime
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "integration"), str(TESTS / "sweep")]

import torch  # noqa: E402  after the path is set
import transformers  # noqa: E402
from quick_shards import ShardsEnded  # noqa: E402

from random_models import EXCLUDED, save_random_model  # noqa: E402
from sweep import Served, all_types, answers_quantized, serve_and_compare  # noqa: E402
from text_generation_server.errors import ModelError  # noqa: E402
from text_generation_server.model_table import HEADER, ModelRow, ModelTable  # noqa: E402

TABLE = TESTS.parent / "server" / "text_generation_server" / "models.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    wanted = parser.parse_args().types
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    kept = {(row.model_type, row.kind): row for row in ModelTable.read().rows} if wanted else {}
    excluded = [ModelRow(name, "decoder", "", False, "", False, reason) for name, reason in EXCLUDED.items()]
    kept |= {(row.model_type, row.kind): row for row in excluded}
    for model_type, seq2seq in all_types():
        if not wanted or model_type in wanted:
            start_seconds = time.monotonic()
            row = _check(model_type, seq2seq)
            kept[model_type, row.kind] = row
            print(*row.cells(), f"{time.monotonic() - start_seconds:.1f} s", sep=" | ", flush=True)
            _write([kept[key] for key in sorted(kept)])


def _check(model_type: str, seq2seq: bool) -> ModelRow:
    kind = "encoder-decoder" if seq2seq else "decoder"
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    try:
        model = save_random_model(folder / "model", model_type, seq2seq)
        served = serve_and_compare(model, folder / "one", 1, seq2seq, model_type)
        shards = "1, 2" if _runs_on_two(model, folder, seq2seq, model_type, served) else "1"
        quantized = answers_quantized(model, folder / "small", served.weight_bytes)
        return ModelRow(model_type, kind, served.path, served.is_paged, shards, quantized)
    except (ModelError, ShardsEnded, AssertionError) as error:
        return ModelRow(model_type, kind, "", False, "", False, _reason(error))
    finally:
        shutil.rmtree(folder)


def _reason(error: Exception) -> str:
    """What comes after the place and the type in a refusal."""
    return str(error).splitlines()[0].rpartition("is not served: ")[2]


def _runs_on_two(model: Path, folder: Path, seq2seq: bool, model_type: str, alone: Served) -> bool:
    """
    Raises:
        ShardsEnded, AssertionError: the server says that it does, and is wrong.
    """
    try:
        both = serve_and_compare(model, folder / "two", 2, seq2seq, model_type)
    except ShardsEnded as refusal:
        if "shard" in str(refusal):
            return False
        raise
    return (both.path, both.is_paged) == (alone.path, alone.is_paged)


def _write(rows: list[ModelRow]) -> None:
    today = datetime.date.today().isoformat()
    libraries = f"transformers {transformers.__version__}, torch {torch.__version__}"
    with TABLE.open("w", newline="") as file:
        file.write(f"# {today} on CPU in float32, with {libraries}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(["" if cell == "—" else cell for cell in row.cells()] for row in rows)


if __name__ == "__main__":
    main()
