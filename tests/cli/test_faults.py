"""The command line when something goes wrong: interrupts, no memory, pipes, long words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastlora.cli import commands
from fastlora.cli.group import shortened
from fastlora.recipes.frame import staged
from fastlora.recipes.mnist import job

ROOT = Path(__file__).parents[2]


def invoke(*arguments):
    return CliRunner().invoke(commands.fastlora, [str(argument) for argument in arguments])


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_an_interrupt_is_one_word_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "draw_picture", failing(KeyboardInterrupt()))
    monkeypatch.setattr(job, "train_base", lambda options, train, track: job.DigitsMLP(0))
    done = invoke("mnist", "--batches", 2, "--out", tmp_path / "made" / "out")
    assert done.exit_code == 130
    assert done.stderr == "interrupted\n"
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_an_older_run_as_it_was(tmp_path):
    (tmp_path / "results.json").write_text("old")

    def broken_off():
        with staged(tmp_path, ("results.json",)) as draft:
            (draft / "results.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"


def test_drafts_become_files_when_the_job_is_done(tmp_path):
    with staged(tmp_path / "out", ("a",)) as draft:
        (draft / "inner").mkdir()
        for name in ("a", "inner/b"):
            (draft / name).write_text(name)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"out", "out/a", "out/inner", "out/inner/b"}


@pytest.mark.parametrize("command", ["mnist", "mlp", "svd"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path, command):
    (tmp_path / "file").touch()
    (tmp_path / "full" / "results.json").mkdir(parents=True)
    for out, message in (("file/inner", "Not a directory"), ("full", "room for the file results.json")):
        done = invoke(command, "--out", tmp_path / out)
        assert done.exit_code == 1
        assert len(done.output.splitlines()) == 1
        assert message in done.output


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_one_line(monkeypatch, error):
    monkeypatch.setattr(commands, "answer", failing(error))
    done = invoke("info")
    assert done.exit_code == 1
    assert done.output.startswith("Error: not enough memory")
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "--shape", "1" * 5000],
        ["x" * 5000],
        ["svd", "--layer", "x", "--checkpoint", "y" * 5000],
        ["mnist", "--digit", "9" * 4000 + "x"],
        ["mlp", "--device", "x" * 5000],
        ["budget", "--model", "x," * 5000],
    ],
    ids=lambda arguments: arguments[0][:5],
)
def test_a_message_stays_short_whatever_was_typed(arguments):
    done = invoke(*arguments)
    assert done.exit_code in (1, 2)
    assert len(done.output.split("Error: ")[1]) <= 1_100


def test_a_message_is_cut_in_its_middle():
    assert shortened("a" * 5 + "b" * 5000 + "c" * 5, 25) == "a" * 5 + "b" * 5 + " ... " + "b" * 5 + "c" * 5


@pytest.mark.parametrize(
    ("command", "arguments", "highest"),
    [("mnist", (), 1000), ("mlp", (), 200), ("svd", ("--shape", "9,7"), 7)],
)
def test_a_rank_above_the_layers_smaller_side_is_refused(tmp_path, command, arguments, highest):
    done = invoke(command, *arguments, "--rank", 5000, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert f"rank must be at most {highest}" in done.output or f"r must be at most {highest}" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["budget", "--model", "8,8", "--batch", 10**20], "batch must be at most 1,000,000,000"),
        (["budget", "--model", "8,8", "--rank", 10**20], "r must be at most 1,000,000,000"),
        (["budget", "--model", f"{10**20},8"], "from 1 to 1,000,000,000"),
        (["budget", "--model", "8,8*1000000000"], "COUNT to 10,000"),
        (
            ["budget", "--model", f"{10**9},8", "--batch", 10**9, "--tokens", 10**9],
            "tensors that can be counted",
        ),
        (["svd", "--seed", 10**30], "seed must be an int of at least 0"),
        (["mnist", "--seed", 2**62], "seed must be an int of at least 0"),
    ],
)
def test_a_number_beyond_all_sense_is_a_usage_error(arguments, message):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.exhaustive
def test_a_reader_that_leaves_is_no_error():
    """As in `fastlora info | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "fastlora", "info"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""


def test_a_narrow_terminal_cuts_no_number_off(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(job, "train_base", lambda options, train, track: job.DigitsMLP(0))
    done = invoke("mnist", "--batches", 1, "--out", tmp_path)
    row = next(line for line in done.output.splitlines() if line.strip().startswith("LoRA off"))
    assert len(row.split()) == len(("LoRA", "off", "accuracy", *range(10)))
