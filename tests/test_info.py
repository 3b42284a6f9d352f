"""What `fastlora info` knows."""

import platform

import pytest
import torch

from fastlora import __version__, set_backend
from fastlora.info import collect_info, versions
from fastlora.routes import triton_version


def paths(device="cpu"):
    found = next(entry for entry in collect_info().devices if entry.device == device)
    return {taken.dtype: taken for taken in found.paths}


def test_versions_are_those_that_run():
    found = versions()
    assert found["fastlora"] == __version__
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    from fastlora import info

    def missing(name):
        raise info.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(info.metadata, "version", missing)
    assert versions()["triton"] is None


def test_on_a_cpu_torch_computes_and_the_reason_is_told():
    found = paths()
    assert {taken.path for taken in found.values()} == {"torch"}
    assert all(taken.why for taken in found.values())


def test_the_interpreter_takes_what_it_can(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with set_backend("triton"):
        found = {dtype: taken.path for dtype, taken in paths().items()}
    assert found == {
        "float16": "interpreter",
        "bfloat16": "error",
        "float32": "interpreter",
        "float64": "error",
    }


@pytest.mark.parametrize(("variable", "value"), [("FASTLORA_BACKEND", "torch"), ("TRITON_INTERPRET", None)])
def test_settings_are_shown_as_they_are(monkeypatch, variable, value):
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    assert collect_info().settings[variable] == value


def test_a_gpu_is_described(monkeypatch):
    class Properties:
        name, major, minor, total_memory = "NVIDIA H200", 9, 0, 150_000_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    with set_backend("torch"):
        gpu = collect_info().devices[1]
    assert (gpu.device, gpu.name, gpu.capability) == ("cuda:0", "NVIDIA H200", "9.0")
    assert gpu.memory_bytes == 150_000_000_000
    assert [taken.path for taken in gpu.paths] == ["torch"] * 4


def test_the_installed_triton_has_a_version():
    triton = pytest.importorskip("triton")
    assert ".".join(map(str, triton_version.triton_version())) == triton.__version__
