"""Which code path a device and dtype take, and who decides."""

import os
import subprocess
import sys

import pytest
import torch

import fastlora
from fastlora.routes.route import _kernels_on, route_on

CPU = torch.device("cpu")


def test_auto_takes_torch_on_a_cpu_and_says_why():
    path = route_on(CPU, torch.float32)
    assert path.name == "torch"
    assert path.why


def test_triton_on_cpu_tensors_takes_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with fastlora.set_backend("triton"):
        assert route_on(CPU, torch.float32).name == "interpreter"


@pytest.mark.parametrize(
    ("interpret", "dtype", "reason"),
    [
        ("0", torch.float32, "TRITON_INTERPRET=1"),
        ("1", torch.bfloat16, "bf16"),
        ("1", torch.float64, "fp16, bf16 and fp32"),
    ],
)
def test_triton_where_it_cannot_run_is_an_error_with_the_reason(monkeypatch, interpret, dtype, reason):
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    layer = fastlora.FusedLoRALinear(4, 3, r=2, dtype=dtype)
    with fastlora.set_backend("triton"), pytest.raises(fastlora.BackendError, match=reason):
        layer(torch.ones(2, 4, dtype=dtype))


def test_a_device_without_kernels_takes_torch():
    assert route_on(torch.device("mps"), torch.float32).name == "torch"


@pytest.fixture
def rocm(monkeypatch):
    """As if this machine had a ROCm device."""
    _kernels_on.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "AMD Instinct MI300X")
    yield torch.device("cuda", 0)
    _kernels_on.cache_clear()


def test_a_rocm_device_takes_torch_unless_the_kernels_are_asked_for(rocm):
    path = route_on(rocm, torch.bfloat16)
    assert (path.name, "not proven" in path.why) == ("torch", True)
    assert route_on(rocm, torch.bfloat16, "triton").name == "triton"


def test_explaining_a_call_on_a_rocm_device_says_the_same():
    layer = fastlora.FusedLoRALinear(64, 32, r=4)
    assert "not proven" in str(fastlora.explain((8, 64), layer, gpu="MI300X"))
    with fastlora.set_backend("triton"):
        assert "not proven" not in str(fastlora.explain((8, 64), layer, gpu="MI300X"))


def test_the_setting_ends_with_its_block_even_after_an_error():
    block = fastlora.set_backend("torch")
    with pytest.raises(RuntimeError, match="mat1"), block:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert fastlora.get_backend() == "auto"


def test_the_setting_holds_without_a_block():
    fastlora.set_backend("torch")
    assert fastlora.get_backend() == "torch"


def test_an_unknown_backend_is_refused_and_changes_nothing():
    with pytest.raises(ValueError, match=r"auto, triton, torch; got 'cuda'"):
        fastlora.set_backend("cuda")
    assert fastlora.get_backend() == "auto"


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("torch", "torch"),
        pytest.param("", "FASTLORA_BACKEND must be one of", marks=pytest.mark.exhaustive),
    ],
)
def test_the_environment_sets_the_backend_or_is_refused_by_name(value, printed):
    done = subprocess.run(
        [sys.executable, "-c", "import fastlora; print(fastlora.get_backend())"],
        env={**os.environ, "FASTLORA_BACKEND": value, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert printed in done.stdout + done.stderr


def test_the_interpreter_asked_for_after_triton_was_imported_is_a_clear_error():
    code = (
        "import os, torch, triton, fastlora\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "fastlora.set_backend('triton')\n"
        "fastlora.FusedLoRALinear(4, 3, r=2)(torch.ones(2, 4))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert "must be set before triton is first imported" in done.stderr
