"""What `fastlora` answers where only torch is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

START = """
import sys
for name in ("click", "rich", "matplotlib", "numpy", "safetensors", "transformers", "huggingface_hub"):
    sys.modules[name] = None
import runpy
sys.argv = ["fastlora", *sys.argv[1:]]
runpy.run_module("fastlora", run_name="__main__")
"""


def bare(*arguments):
    """`python -m fastlora` where click, rich and the other extras cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", START, *arguments],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": ""},
        check=False,
    )


EXTRA = 'click and rich: pip install "fastlora-triton[demo]"'


def test_info_needs_torch_alone_and_says_what_the_rest_needs():
    done = bare("info")
    assert done.returncode == 0, done.stderr
    assert "fastlora " in done.stdout
    assert "float64   torch" in done.stdout
    assert done.stderr.splitlines()[-1] == f"The other commands need {EXTRA}"


@pytest.fixture
def run(monkeypatch, capsys):
    """The same in this process: (exit status, stdout, stderr)."""
    from fastlora.cli import main

    def run(*arguments):
        for name in ("click", "rich"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(sys, "argv", ["fastlora", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code, *capsys.readouterr()

    return run


def test_a_shape_is_explained_in_the_same_words(run):
    from click.testing import CliRunner

    from fastlora.cli import commands

    arguments = ["info", "--shape", "8192,4096,4096,16", "--gpu", "H200", "--json"]
    assert run(*arguments)[:2] == (0, CliRunner().invoke(commands.fastlora, arguments).stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "1,2,3"], "--shape must be four whole numbers M,K,N,r"),
        (["--shape", "0,2,3,4"], "M must be at least 1; got 0"),
        (["--gpu", "H200"], "--gpu goes with --shape"),
        (["--shape", "1,2,3,4", "--gpu", "nope"], "H200"),
        (["extra"], "extra"),
    ],
)
def test_a_wrong_option_is_one_line(run, arguments, message):
    code, _, stderr = run("info", *arguments)
    assert code == 2
    assert message in stderr.splitlines()[-1]


def test_any_other_command_names_the_extra(run):
    assert run("mnist") == (1, "", f"fastlora: the command line needs {EXTRA}\n")
    assert run("--help")[0] == run("--version")[0] == 0
