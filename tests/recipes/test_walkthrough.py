"""PEFT's walk-through on an MLP; one run with PEFT beside it serves most tests."""

import json
import struct

import pytest
import torch
from click.testing import CliRunner

import fastlora
from fastlora.cli import commands
from fastlora.recipes import frame
from fastlora.recipes.walkthrough import job
from fastlora.recipes.walkthrough.libraries import FASTLORA, PEFT, _Fastlora
from fastlora.recipes.walkthrough.options import WalkOptions
from fastlora.recipes.walkthrough.tasks import SumMLP, sine_task, threshold_task
from fastlora.recipes.walkthrough.walk import Tasks, walk


def invoke(*arguments):
    return CliRunner().invoke(commands.fastlora, ["mlp", *map(str, arguments)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("mlp")
    done = invoke("--peer", "peft", "--device", "cpu", "--out", out)
    assert done.exit_code == 0, done.output
    return done.output, json.loads((out / "results.json").read_text()), out


def walked(library, tmp_path, dtype=torch.float32):
    """A walk from an untrained net."""
    tasks = Tasks(sine_task(generator(1)), threshold_task(generator(2)))
    options = WalkOptions(out=tmp_path, device="cpu")
    return walk("fastlora", library, SumMLP(0).to(dtype), tasks, options)


def test_the_parameters_are_counted_as_peft_counts_them(run):
    _, found, _ = run
    for parameters in (found["parameters"], found["peer"]["parameters"]):
        full = parameters["with_full_layer"]
        assert (parameters["base"], parameters["merged"]) == (442_602, 442_602)
        assert (parameters["trainable"], parameters["total"]) == (12_660, 455_262)
        assert f"{parameters['percent']:.4f}" == "2.7808"
        assert (full["trainable"], full["total"], f"{full['percent']:.4f}") == (13_062, 455_664, "2.8666")


def test_they_are_those_of_pefts_own_count():
    for full, counts in (((), (12_660, 455_262)), (("seq.4",), (13_062, 455_664))):
        model = PEFT.attach(SumMLP(0), 3, 8.0, full)
        assert model.get_nb_trainable_parameters() == counts


def test_every_proof_holds_in_both_libraries(run):
    _, found, _ = run
    names = {"starts_at_zero", "base_identical", "merged_holds", "reloaded_identical"}
    for proofs in (found["proofs"], found["peer"]["proofs"]):
        assert proofs == dict.fromkeys(names, True)


def test_more_epochs_on_the_same_data_are_no_worse_than_the_last_of_pretraining(run):
    losses = run[1]["losses"]
    assert [len(losses[phase]) for phase in ("pretrain", "same_data", "downstream")] == [20, 3, 10]
    assert losses["pretrain"][-1] < losses["pretrain"][0] / 2
    assert max(losses["same_data"]) <= max(losses["pretrain"][-5:])


def test_the_loss_of_the_downstream_task_falls(run):
    _, found, _ = run
    for losses in (found["losses"], found["peer"]["losses"]):
        assert losses["downstream"][-1] < losses["downstream"][0] / 2
    assert found["accuracy"]["downstream"] > found["accuracy"]["downstream_before"]


def test_only_the_updates_move_in_both_libraries(run):
    _, found, _ = run
    own = {f"seq.{layer}.{kind}": False for layer in (0, 2, 4) for kind in ("weight", "bias")}
    updates = {f"seq.{layer}.lora_{which}": True for layer in (0, 2) for which in "AB"}
    assert found["moved"] == found["peer"]["moved"] == {**own, **updates}
    for name, change in found["change"].items():
        assert (change is None) == name.endswith("lora_B")
        assert change is None or (change > 0) == found["moved"][name]


def test_the_adapter_is_a_small_part_of_the_base_on_disk(run):
    _, found, out = run
    assert round(found["adapter_bytes"] / 1000) == round(found["peer"]["adapter_bytes"] / 1000) == 51
    assert found["adapter_bytes"] == (out / "fastlora" / "adapter_model.safetensors").stat().st_size
    assert found["base_bytes"] // 1000 == 1770


def test_the_files_are_there_and_peft_reads_the_adapter(run):
    import peft
    from safetensors.torch import load_file

    _, found, out = run
    assert {path.name for path in out.iterdir()} == {
        "results.json", "mlp.png", "base.safetensors", "fastlora", "peft"
    }  # fmt: skip
    nets = [SumMLP(0), SumMLP(0)]
    for net in nets:
        net.load_state_dict(load_file(out / "base.safetensors"))
    x = torch.rand(5, 20)
    theirs = peft.PeftModel.from_pretrained(nets[0], str(out / "fastlora")).eval()(x)
    ours = fastlora.load_pretrained(nets[1], out / "fastlora").eval()(x)
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    assert found["options"]["peer"] == "peft"


def test_the_picture_is_a_png_of_1800_by_720(run):
    content = (run[2] / "mlp.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1800, 720)


def test_both_libraries_are_printed_beside_each_other(run):
    output, _, out = run
    for text in (
        "442,602 parameters in the net, a file of 1,771 kB",
        "12,660 of 455,262, 2.7808%  12,660 of 455,262, 2.7808%",
        "13,062 of 455,664, 2.8666%  13,062 of 455,664, 2.8666%",
        "not a bit      not a bit",
        "✓ fastlora: saved, and loaded into the base",
        "✓ peft: saved, and loaded into the base",
        "Fused layers ran on: torch",
        f"Results: {out / 'results.json'}",
    ):
        assert text in output


@pytest.mark.exhaustive
def test_without_a_peer_there_is_no_second_column(tmp_path):
    done = invoke("--device", "cpu", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "peft" not in done.output
    assert json.loads((tmp_path / "results.json").read_text())["peer"] is None


def test_in_fp64_both_libraries_take_the_same_path(tmp_path):
    ours, theirs = (walked(library, tmp_path, torch.float64) for library in (FASTLORA, PEFT))
    for phase, losses in ours.losses.items():
        # fp64's rounding grows from step to step; fp32's would be a hundred million times as large.
        assert losses == pytest.approx(theirs.losses[phase], rel=torch.finfo(torch.float32).eps)


class FromOne(_Fastlora):
    def start(self, model, generator):
        super().start(model, generator)
        for _, B, _ in self.updates(model).values():
            torch.nn.init.ones_(B)


class MovesABias(_Fastlora):
    def attach(self, net, r, alpha, full=()):
        model = super().attach(net, r, alpha, full)
        model.seq[4].bias.requires_grad_(True)
        return model


class ForgetsToMerge(_Fastlora):
    def merge_and_unload(self, model):
        return fastlora.remove_lora(model)


class LosesALayer(_Fastlora):
    def load(self, net, folder):
        model = super().load(net, folder)
        torch.nn.init.zeros_(model.seq[2].lora_B)
        return model


@pytest.mark.parametrize(
    ("library", "broken"),
    [
        (FromOne, {"starts_at_zero"}),
        (MovesABias, {"base_identical", "merged_holds"}),
        (ForgetsToMerge, {"merged_holds"}),
        (LosesALayer, {"reloaded_identical"}),
    ],
)
def test_a_library_that_breaks_a_promise_is_found_out(tmp_path, library, broken):
    proofs = walked(library(), tmp_path).proofs._asdict()
    assert {name for name, holds in proofs.items() if not holds} == broken


@pytest.mark.exhaustive
def test_a_proof_that_fails_makes_the_exit_status_1(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "FASTLORA", ForgetsToMerge())
    done = invoke("--out", tmp_path)
    assert done.exit_code == 1
    assert "✗ fastlora: merged and unloaded" in done.output
    assert "Error: a proof failed" in done.output


def test_the_rows_are_labelled_by_their_sums():
    sine, threshold = sine_task(generator()), threshold_task(generator())
    for task, train, test, label in (
        (sine, 800, 200, lambda sums: sums.sin() > 0),
        (threshold, 300, 200, lambda sums: sums > 10),
    ):
        assert (len(task.train.x), len(task.test.x)) == (train, test)
        for rows in task:
            assert torch.equal(rows.labels, label(rows.x.sum(1)).long())
            assert 0 < rows.labels.double().mean() < 1


def test_the_nets_weights_are_the_seeds_and_torchs_generator_stays():
    state = torch.get_rng_state()
    one, same, other = (list(SumMLP(seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, one, same))
    assert not any(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "0"], "rank must be an int >= 1; got 0"),
        (["--alpha", "0"], "alpha must be a finite number other than 0; got 0.0"),
        (["--seed", 2**32], "seed must be an int from 0 to 4294967295"),
        (["--device", "meta"], "device must be one that holds data; got 'meta'"),
        (["--peer", "loralib"], "'loralib' is not"),
    ],
)
def test_a_wrong_option_is_a_usage_error(arguments, message):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_options_refuse_a_peer_that_they_do_not_know():
    with pytest.raises(ValueError, match="peer must be one of peft, or None; got 'loralib'"):
        WalkOptions(peer="loralib")


def test_a_missing_peer_is_named_before_anything_is_trained(monkeypatch, tmp_path):
    find_spec = frame.find_spec
    monkeypatch.setattr(frame, "find_spec", lambda name: None if name == "peft" else find_spec(name))
    done = invoke("--peer", "peft", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert done.output == 'Error: --peer peft needs peft: pip install "fastlora-triton[peft]"\n'
    assert not (tmp_path / "out").exists()
