"""`fastlora finetune`, `generate` and `merge` at the terminal, and the file that --config reads."""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastlora.cli import commands
from fastlora.recipes.finetune.config_file import ConfigFileError, read_config

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
]
ROOT = Path(__file__).parents[2]
NAMES = ("model", "max_steps", "lr")


def invoke(*arguments, **options):
    return CliRunner().invoke(commands.fastlora, [str(argument) for argument in arguments], **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "must be YAML"),
        ("- model", "must hold options"),
        ("lr: 1\nmax_step: 3", "line 2: 'max_step' is no option; near it: max_steps"),
        ("lr: 1\nlr: 2", "line 2: 'lr' is there twice"),
        ("lr: {a: 1}", "line 1: 'lr' must be one value"),
    ],
)
def test_a_bad_config_is_one_line(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigFileError, match=message) as error:
        read_config(str(path), NAMES)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigFileError, match="one of chat, qlora, tiny"):
        read_config(str(tmp_path / "none.yaml"), NAMES)


def test_the_command_line_counts_before_the_file_and_both_are_checked(tmp_path, monkeypatch):
    seen = []

    def caught(options, say):
        seen.append(options)
        raise OSError("far enough")

    monkeypatch.setattr("fastlora.cli.finetune.run", caught)
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nmax-steps: 3\nlr: 0.5\npacking: true\n")
    done = invoke("finetune", "--config", path, "--data", "d", "--lr", 0.25)
    assert done.output.strip() == "Error: far enough"
    assert (seen[0].model, seen[0].max_steps, seen[0].lr, seen[0].packing) == ("m", 3, 0.25, True)
    path.write_text("max-steps: many\n")
    done = invoke("finetune", "--config", path, "--model", "m", "--data", "d")
    assert done.exit_code == 2
    assert "'many' is not a valid integer" in done.output


def test_what_is_wrong_is_one_line_and_nothing_is_written(tmp_path):
    out = tmp_path / "out"
    done = invoke("finetune", "--model", "tiny", "--data", tmp_path / "none.jsonl", "--out", out)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "data must be a JSONL file that exists" in done.output
    done = invoke("generate", "--adapter", tmp_path, "--prompt", "a")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "adapter must be a folder with adapter_config.json" in done.output
    done = invoke("merge", "--adapter", tmp_path, "--out", out)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    done = invoke("generate", "--prompt", "a")
    assert done.exit_code == 2
    assert "model or adapter must be there" in done.output
    assert not out.exists()


def proposed(result, begin):
    """Arguments of the command that an output proposes, as a shell reads it."""
    line = next(line for line in result.output.splitlines() if line.startswith(begin))
    return shlex.split(line.removeprefix(begin))[1:]


@pytest.mark.exhaustive
def test_three_commands_train_talk_and_merge(tmp_path):
    out = tmp_path / "my out"
    done = invoke("finetune", "--config", "tiny", "--device", "cpu", "--out", out)
    assert done.exit_code == 0, done.output
    for text in (
        "Loss 8.",
        "Tokens a second: ",
        "Peak memory: ",
        "ran on torch",
        f"Adapter: {out / 'adapter'}",
    ):
        assert text in done.output
    answer = "A low-rank update of a frozen weight.\n"
    assert invoke(*proposed(done, "Talk to it: "), "--prompt", "What is LoRA?").output == answer
    done = invoke(*proposed(done, "Merge it: "))
    assert "14 layers" in done.output
    chat = invoke(*proposed(done, "Talk to it: "), input="What is LoRA?\nWhat is r?\n\n").output
    assert "A low-rank update of a frozen weight." in chat


@pytest.mark.exhaustive
def test_two_processes_under_torchrun_train_on_rows_of_their_own_and_one_writes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    options = ["--config", "tiny", "--max-steps", "6", "--device", "cpu", "--out", str(tmp_path / "out")]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "fastlora", "finetune", *options],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Adapter: ") == 1
    assert done.stdout.count("step 6 of 6") == 1
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
