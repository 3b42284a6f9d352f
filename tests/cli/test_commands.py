"""The command line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastlora import __version__, set_backend
from fastlora.cli import commands, main
from fastlora.recipes.digits import Digits, read_sample
from fastlora.recipes.mnist import job
from fastlora.routes import backend

ROOT = Path(__file__).parents[2]


def invoke(*arguments):
    return CliRunner().invoke(commands.fastlora, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """A real run, cut short: one pass over every tenth digit, and 20 batches."""
    digits = read_sample()
    few = digits._replace(train=Digits(*(tensor[::10] for tensor in digits.train)))
    out = tmp_path_factory.mktemp("out")
    options = {"epochs": 1, "batches": 20, "rank": 2, "digit": "auto", "device": "cpu", "out": out}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "read_sample", lambda: few)
        return invoke("mnist", *arguments), out


def test_a_run_prints_figures_proofs_and_files(short_run):
    done, out = short_run
    assert done.exit_code == 0, done.output
    for text in (
        "2,807,010 parameters in the net",
        "13,588 added by LoRA, 0.484% of the net's",
        "2,820,598 together",
        "Train the base net: 40 steps",
        "✓ frozen weights are the base's, bit for bit",
        "✓ LoRA on: every effective weight is W + s B A, within rounding",
        "✓ LoRA off: every weight and every wrong count is exactly the base's",
        "Fused layers ran on: torch",
        f"Results: {out / 'results.json'}",
        "Seconds: read",
    ):
        assert text in done.output


def test_a_run_writes_what_it_was_asked_for(short_run):
    found = json.loads((short_run[1] / "results.json").read_text())
    assert found["options"]["rank"] == 2
    assert found["options"]["epochs"] == 1
    assert len(found["losses"]) == 20
    assert found["wrong"]["base"][found["digit"]] == max(found["wrong"]["base"])
    assert {path.name for path in short_run[1].iterdir()} == {
        "results.json", "mnist.png", "adapter.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize("proof", ["frozen_identical", "effective_holds", "off_identical"])
def test_a_proof_that_fails_makes_the_exit_status_1(monkeypatch, tmp_path, proof):
    def run_with_a_failure(options, track):
        monkeypatch.setattr(job, "train_base", lambda options, train, track: job.DigitsMLP(0))
        return replace(job.run(options, track), **{proof: False})

    monkeypatch.setattr("fastlora.cli.mnist.run", run_with_a_failure)
    done = invoke("mnist", "--batches", 2, "--out", tmp_path)
    assert done.exit_code == 1
    assert "✗" in done.output
    assert "Error: a proof failed" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "0"], "rank must be an int >= 1; got 0"),
        (["--alpha", "inf"], "alpha must be a finite number"),
        (["--digit", "12"], "digit must be 0 to 9 or 'auto'; got 12"),
        (["--digit", "nine"], "digit must be 0 to 9 or 'auto'; got 'nine'"),
        (["--device", "cuda:99"], "device must be one that torch can use here; got 'cuda:99'"),
        (["--method", "peft"], "'peft' is not one of"),
        (["--batches", "few"], "'few' is not a valid integer"),
    ],
)
def test_a_wrong_option_is_a_usage_error(arguments, message):
    done = invoke("mnist", *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_data_that_cannot_be_read_are_reported_without_a_traceback(tmp_path):
    done = invoke("mnist", "--data", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert "missing: train-images-idx3-ubyte" in done.output


def test_an_unknown_backend_is_reported_without_a_traceback(monkeypatch):
    monkeypatch.setattr(backend, "_backend", None)
    monkeypatch.setenv("FASTLORA_BACKEND", "cuda")
    done = invoke("info")
    assert done.exit_code == 1
    assert "Error: FASTLORA_BACKEND must be one of auto, triton, torch; got 'cuda'" in done.output


def test_info_shows_versions_and_paths():
    done = invoke("info")
    assert done.exit_code == 0
    assert __version__ in done.output
    assert "cpu: " in done.output
    assert "bfloat16" in done.output


def test_info_as_json_says_which_path_each_dtype_takes():
    with set_backend("torch"):
        found = json.loads(invoke("info", "--json").output)
    assert found["versions"]["fastlora"] == __version__
    assert set(found["settings"]) == {"FASTLORA_BACKEND", "TRITON_INTERPRET"}
    assert {taken["path"] for taken in found["devices"][0]["paths"]} == {"torch"}


def test_python_m_fastlora_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "fastlora", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == f"fastlora, version {__version__}"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_it_names_it_in_one_line(monkeypatch, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(sys, "argv", ["fastlora", "mnist"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    assert capsys.readouterr().err == (
        f'fastlora: the command line needs {missing}: pip install "fastlora-triton[demo]"\n'
    )


def test_info_explains_a_shape_on_a_named_gpu():
    # Of more ranks than the persistent kernels take.
    arguments = ["info", "--shape", "8192,4096,4096,40", "--adapter-dtype", "float32", "--gpu", "H200"]
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert "128 of p (2 a tile), 1,024 of y" in done.output
    assert "128 of q, 1,024 of dx" in done.output
    done = invoke(*arguments, "--json")
    found = json.loads(done.output)
    assert found["passes"][0]["tasks"] == {"p": 128, "y": 1024}
    assert found["adapter_dtype"] == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "1,2,3"], "four whole numbers M,K,N,r; got '1,2,3'"),
        (["--shape", "0,2,3,4"], "M must be at least 1; got 0"),
        (["--shape", "1,2,3,0"], "r must be an int >= 1; got 0"),
        (["--gpu", "H200"], "--gpu goes with --shape"),
        (["--dtype", "float16"], "--dtype goes with --shape"),
    ],
)
def test_info_refuses_what_it_cannot_explain(arguments, message):
    done = invoke("info", *arguments)
    assert done.exit_code == 2
    assert message in done.output
