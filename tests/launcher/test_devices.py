"""GPUs, counted from the environment."""

import pytest

from text_generation_launcher.devices import visible_devices


@pytest.mark.parametrize(
    ("value", "devices"),
    [("0", ["0"]), ("2,3", ["2", "3"]), (" 2, 3 ", ["2", "3"]), ("GPU-ab,GPU-cd", ["GPU-ab", "GPU-cd"])],
)
def test_cuda_visible_devices_names_them(value: str, devices: list[str]) -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": value}) == devices


@pytest.mark.parametrize(("value", "devices"), [("", []), ("-1", []), ("0,-1,1", ["0"])])
def test_cuda_visible_devices_ends_at_the_first_that_is_none(value: str, devices: list[str]) -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": value}) == devices


def test_cuda_visible_devices_goes_before_nvidia_visible_devices() -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "5", "NVIDIA_VISIBLE_DEVICES": "0,1"}) == ["5"]


def test_nvidia_visible_devices_are_numbered_anew_inside_the_container() -> None:
    assert visible_devices({"NVIDIA_VISIBLE_DEVICES": "4,7"}) == ["0", "1"]


def test_nvidia_visible_devices_none_is_none() -> None:
    assert visible_devices({"NVIDIA_VISIBLE_DEVICES": "none"}) == []


@pytest.mark.parametrize("value", ["all", "void", ""])
def test_other_values_leave_it_to_the_driver(value: str) -> None:
    assert visible_devices({"NVIDIA_VISIBLE_DEVICES": value}) == visible_devices({})
