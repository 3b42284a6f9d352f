"""The examples run as they stand, alone and under `accelerate launch`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TESTED = {"trainer.py", "peft_one_line.py", "ddp_digits.py", "fsdp_llama.py"}


def run(*command, cwd):
    """Run a Python command in a folder of its own, offline; its output."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == TESTED


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param((), id="alone", marks=pytest.mark.exhaustive),  # quick: test_trainer.py
        pytest.param(
            ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, "--main_process_port", 0),
            id="two processes",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_the_trainer_example_saves_a_model_that_transformers_loads(tmp_path, launcher):
    output = run(*launcher, EXAMPLES / "trainer.py", "--steps", 4, "--out", "out", cwd=tmp_path)
    assert output.count("saved out") == 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not any("lora" in name for name in model.state_dict())
    assert model(torch.arange(8)[None]).logits.isfinite().all()


@pytest.mark.exhaustive  # quick: test_peft.py
def test_the_peft_example_is_fused_and_saves_pefts_adapter(tmp_path):
    output = run(EXAMPLES / "peft_one_line.py", "--steps", 4, "--out", "out", cwd=tmp_path)
    assert "14 of 14 layers take fastlora's fused forward" in output
    assert "forwards: {'fused': 56}" in output
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
