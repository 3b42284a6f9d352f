"""The low-rank job and its command: figures, files, and what is refused."""

import json
import struct

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fastlora.cli.commands import fastlora
from fastlora.recipes.svd.job import run
from fastlora.recipes.svd.matrices import CheckpointError, layer_weight, random_matrix
from fastlora.recipes.svd.picture import draw_spectrum


def invoke(*arguments):
    return CliRunner().invoke(fastlora, ["svd", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A net's state_dict as torch and safetensors write it, the latter in two files."""
    safetensors = pytest.importorskip("safetensors.torch")
    folder = tmp_path_factory.mktemp("checkpoint")
    net = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).state_dict()
    torch.save(net, folder / "net.pt")
    for part in "01":
        content = {name: tensor for name, tensor in net.items() if name.startswith(part)}
        safetensors.save_file(content, folder / f"model-{part}.safetensors")
    return folder, net


def test_a_random_matrix_is_of_its_rank_and_the_same_for_its_seed():
    W = random_matrix(12, 9, 4, seed=1)
    assert torch.linalg.matrix_rank(W) == 4
    assert torch.equal(W, random_matrix(12, 9, 4, seed=1))
    assert not torch.equal(W, random_matrix(12, 9, 4, seed=2))


def test_the_command_prints_figures_and_writes_files(tmp_path):
    done = invoke("--out", tmp_path)
    assert done.exit_code == 0, done.output
    for text in ("10 x 10, random, of rank 2", "100 of W, 40 of B and A: 40.0%", str(tmp_path / "svd.png")):
        assert text in done.output
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["matrix_rank"], found["r"], len(found["singular_values"])) == (2, 2, 10)
    assert found["parameters"] == {"dense": 100, "factored": 40, "percent": 40.0}
    rounding = 100 * torch.finfo(torch.float32).eps
    assert max(found["relative_error"], found["y_error"], 1 - found["energy"]) <= rounding
    assert found["optimal_error"] <= found["error"]
    content = (tmp_path / "svd.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1800, 720)


def test_what_is_left_out_is_the_error(tmp_path):
    W = torch.diag(torch.tensor([4.0, 2.0, 2.0]))
    found = run(W, "by hand", r=1, energy=None, seed=0, out=tmp_path)
    assert (found.matrix_rank, found.error, found.optimal_error) == pytest.approx((3, 8**0.5, 8**0.5))
    assert (found.energy, found.relative_error) == pytest.approx((16 / 24, (8 / 24) ** 0.5))
    assert found.y_error > 0.01


@pytest.mark.parametrize(("energy", "r"), [(0.6, 1), (0.7, 2), (1.0, 3)])
def test_the_least_rank_that_keeps_the_energy_is_taken(tmp_path, energy, r):
    W = torch.diag(torch.tensor([4.0, 2.0, 2.0]))
    assert run(W, "by hand", r=None, energy=energy, seed=0, out=tmp_path).r == r


@pytest.mark.parametrize(
    ("shape", "true_rank", "r"), [((40, 30), 30, 8), ((40, 30), 3, 3), ((3, 2), 2, 1), ((1, 5), 1, 1)]
)
def test_without_a_wish_the_factors_take_at_most_half_of_the_matrix(tmp_path, shape, true_rank, r):
    N, K = shape
    done = invoke("--shape", f"{N},{K}", "--true-rank", true_rank, "--out", tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["r"] == r
    assert r == 1 or found["parameters"]["percent"] <= 50
    reason = "the rank of W" if r == true_rank else "B and A are at most half of W"
    assert f"({reason}; --rank or --energy choose another)" in done.output


def test_a_matrix_of_zeros_is_its_factors(tmp_path):
    found = run(torch.zeros(4, 3), "zeros", r=None, energy=None, seed=0, out=tmp_path)
    assert (found.matrix_rank, found.r, found.energy, found.relative_error, found.y_error) == (0, 1, 1, 0, 0)


@pytest.mark.parametrize("size", [1, 65])
def test_few_and_many_singular_values_are_drawn(tmp_path, size):
    draw_spectrum([1.0] * size, (size, size), size, "all equal", tmp_path / "svd.png")
    assert (tmp_path / "svd.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["net.pt", "."])
@pytest.mark.parametrize("layer", ["1", "1.weight"])
def test_a_layer_is_found_in_a_checkpoint_by_either_name(files, name, layer):
    folder, net = files
    assert torch.equal(layer_weight(folder / name, layer), net["1.weight"])


def test_a_checkpoints_only_matrix_needs_no_name(files):
    folder, net = files
    assert torch.equal(layer_weight(folder / "model-0.safetensors", None), net["0.weight"])


def test_a_layer_of_a_checkpoint_goes_through_the_command(files, tmp_path):
    done = invoke("--checkpoint", files[0] / "net.pt", "--layer", "0", "--rank", 2, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "5 x 7, 0 of net.pt" in done.output
    assert "35 of W, 24 of B and A: 68.6%" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "10"], "--shape must be two whole numbers N,K; got '10'"),
        (["--shape", "0,3"], "N must be an int >= 1; got 0"),
        (["--true-rank", 11], "true rank must be at most 10, the smaller side; got 11"),
        (["--rank", 11], "r must be at most 10, the smaller side of the matrix; got 11"),
        (["--energy", 1.5], "share must be a number in (0, 1]; got 1.5"),
        (["--rank", 1, "--energy", 0.5], "rank and energy must not both be given; got 1 and 0.5"),
        (["--layer", "0"], "--layer goes with --checkpoint"),
        (["--checkpoint", __file__, "--shape", "3,3"], "not with --checkpoint"),
        (["--checkpoint", "nowhere.pt"], "'nowhere.pt' does not exist"),
    ],
)
def test_a_wrong_option_is_a_usage_error(tmp_path, arguments, message):
    done = invoke(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_cannot_be_used_is_reported_in_one_line(files, tmp_path):
    folder, _ = files
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 9)
    (tmp_path / "cut.pt").write_bytes(b"no pickle")
    torch.save([1.0], tmp_path / "list.pt")
    (tmp_path / "empty").mkdir()
    for path, layer, message in (
        (folder / "net.pt", "2", "the checkpoint's matrices, '0.weight', '1.weight'; got '2'"),
        (folder, "0.bias", "got '0.bias'"),
        (folder, None, "got None"),
        (tmp_path / "cut.safetensors", None, "must be a whole safetensors file"),
        (tmp_path / "cut.pt", None, "must be a state_dict that torch.save wrote"),
        (tmp_path / "list.pt", None, "must hold a state_dict; it holds a list"),
        (tmp_path / "empty", None, "must hold safetensors files"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError) as caught:
            layer_weight(path, layer)
        assert message in str(caught.value)
    done = invoke("--checkpoint", folder / "net.pt", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert done.output.startswith("Error: layer must be one of")
