import pathlib

import pytest
from grpc_tools import protoc

FOLDER = pathlib.Path(__file__).parents[2] / "proto"
STUBS = sorted(path.relative_to(FOLDER) for path in FOLDER.glob("*/*_pb2*.py*"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What `make proto` writes."""
    out = tmp_path_factory.mktemp("stubs")
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{FOLDER}", *outputs, str(FOLDER / "text_generation_proto" / "shard.proto")]) == 0
    return out


def test_there_are_as_many_stubs_as_the_proto_gives(generated):
    assert sorted(path.relative_to(generated) for path in generated.glob("*/*")) == STUBS
    assert len(STUBS) == 3


@pytest.mark.parametrize("stub", STUBS, ids=str)
def test_the_stubs_are_those_of_the_proto(generated, stub):
    assert (FOLDER / stub).read_text() == (generated / stub).read_text(), "shard.proto changed: run `make proto`"
