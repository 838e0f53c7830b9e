"""A model's name becomes a folder."""

import argparse
import os
import sys
from pathlib import Path

import pytest

from text_generation_launcher.config import LauncherConfig
from text_generation_launcher.download import first_stage, local_folder, needs_child, wait_for_folder
from text_generation_launcher.launch import Commands
from text_generation_launcher.process import Child, LaunchError
from text_generation_proto.flags import parse


def never() -> bool:
    return False


def nothing() -> None:
    pass


def program(source: str) -> Child:
    return Child("download", [sys.executable, "-S", "-c", source], os.environ, json_output=False)


def test_a_folder_is_used_in_place(tmp_path: Path) -> None:
    assert local_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("model_id", ["gpt2", "bigscience/bloom-560m", "org/name/file.gguf", "org/name/folder/file.gguf"])
def test_a_name_is_left_to_the_hub(model_id: str) -> None:
    assert local_folder(model_id) is None


@pytest.mark.parametrize("model_id", ["./gone", "/gone", "~/gone", "models/tiny/gone", "./gone.gguf"])
def test_a_path_that_does_not_exist_is_no_name_on_the_hub(model_id: str) -> None:
    with pytest.raises(LaunchError, match="no such file or folder"):
        local_folder(model_id)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(LaunchError, match="is a file"):
        local_folder(str(tmp_path / "model.safetensors"))


def test_a_gguf_file_and_a_folder_that_has_nothing_else_are_left_to_the_child(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert local_folder(str(file)) is None and local_folder(str(tmp_path)) is None
    (tmp_path / "model.safetensors").touch()
    assert local_folder(str(tmp_path)) == tmp_path


def test_what_the_child_does_is_said_before(tmp_path: Path) -> None:
    assert first_stage("some/name", None) == "downloading the weights of some/name"
    assert first_stage(str(tmp_path), None) == f"preparing the weights of {tmp_path}"
    assert first_stage(str(tmp_path), tmp_path) is None


def test_the_child_is_told_the_revision_and_whether_code_and_weights_are_wanted() -> None:
    chosen = ("--model-id", "some/name", "--revision", "v1", "--trust-remote-code", "--random-weights")
    plain = parse(LauncherConfig, argparse.ArgumentParser(), chosen[:2])
    config = parse(LauncherConfig, argparse.ArgumentParser(), chosen)
    assert Commands().download(plain)[-2:] == ["download-weights", "some/name"]
    assert Commands().download(config)[-5:] == ["some/name", "--revision", "v1", "--trust-remote-code", "--without-weights"]


def test_only_hub_names_and_bin_files_need_the_child(tmp_path: Path) -> None:
    assert needs_child(None)
    assert not needs_child(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert needs_child(tmp_path)


def test_the_last_line_of_the_child_is_the_folder() -> None:
    child = lambda: program("import sys; print('hello'); print('/a/b'); print('100%', file=sys.stderr)")  # noqa: E731
    assert wait_for_folder(child, never, never, nothing) == Path("/a/b")


def test_a_child_that_fails_gives_its_error() -> None:
    child = lambda: program("import sys; print('Error: no such model', file=sys.stderr); sys.exit(1)")  # noqa: E731
    with pytest.raises(LaunchError, match="exit code 1: Error: no such model"):
        wait_for_folder(child, never, never, nothing)


def test_a_stop_during_the_download_ends_the_child() -> None:
    started: list[Child] = []

    def child() -> Child:
        started.append(program("import time; time.sleep(60)"))
        return started[0]

    with pytest.raises(LaunchError, match="SIGTERM"):
        wait_for_folder(child, lambda: True, never, nothing)
    assert started[0].returncode is not None


def test_trouble_elsewhere_during_the_download_ends_the_child() -> None:
    started: list[Child] = []

    def child() -> Child:
        started.append(program("import time; time.sleep(60)"))
        return started[0]

    def trouble() -> None:
        raise LaunchError("the router could not be started")

    with pytest.raises(LaunchError, match="the router"):
        wait_for_folder(child, never, never, trouble)
    assert started[0].returncode is not None
