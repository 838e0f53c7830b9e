import json
import pathlib

import pytest

from text_generation_launcher.launch_status import LaunchStatus as Writer
from text_generation_router.launch_status import LaunchStatus


@pytest.mark.parametrize("model_path", [None, pathlib.Path("/models/a b")])
@pytest.mark.parametrize("is_over", [False, True])
def test_what_the_launcher_writes_is_what_is_read(tmp_path, model_path, is_over):
    path = tmp_path / "status"
    Writer(path).write("downloading the model", model_path, is_over)
    assert LaunchStatus.read(str(path)) == LaunchStatus("downloading the model", model_path, is_over)


def test_a_launcher_that_has_not_begun_says_nothing(tmp_path):
    assert LaunchStatus.read(str(tmp_path / "status")) is None


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\xfe", b"half of it {", b"null", b"5", b"[]", b'"text"', b"{}", b'{"stage": "loading"}'),
        json.dumps({"model_path": "/m"}).encode(),
        json.dumps({"stage": "loading", "model_path": 5}).encode(),
    ],
)
def test_a_file_of_somebody_else_says_nothing(tmp_path, content):
    path = tmp_path / "status"
    path.write_bytes(content)
    assert LaunchStatus.read(str(path)) is None


def test_a_folder_in_the_files_place_says_nothing(tmp_path):
    assert LaunchStatus.read(str(tmp_path)) is None
