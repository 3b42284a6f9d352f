"""The whole MNIST flow on real digits; one trained base serves the quick tests."""

import copy
import json

import pytest
import torch

import fastlora
from fastlora.measuring.errors import assert_within_budget
from fastlora.recipes import frame, mlp
from fastlora.recipes.digits import DigitsError
from fastlora.recipes.mnist import job as mnist
from fastlora.recipes.mnist.methods import LORA_METHODS
from fastlora.recipes.mnist.options import MnistOptions
from fastlora.recipes.training import Score, score
from tests.cases import quick

LORA = list(LORA_METHODS)
WITH_PEERS = quick(LORA, "fused")
# Of the runs that are compared with one another.
BATCHES = 30
# The net's sizes, and some that the interpreter is done with in seconds.
NETS = quick([mlp.SIZES, (784, 40, 50, 10)], (784, 40, 50, 10))


@pytest.fixture
def trained_once(monkeypatch, base):
    """`run` starts from the shared base instead of training its own."""
    monkeypatch.setattr(mnist, "train_base", lambda options, train, track: copy.deepcopy(base))


def tune(base, digits, method, dtype=torch.float64, **options):
    """Fine-tuned on the nines; A and B of every layer in fp64, and the losses as a tensor."""
    chosen = MnistOptions(method=method, dtype=dtype, **options)
    tuned = mnist.finetune(chosen, copy.deepcopy(base).to(dtype), digits.train.only(9))
    adapters = [tensor.detach() for tensor in tuned.method.trained(tuned.net)]
    return torch.tensor(tuned.losses, dtype=torch.float64), adapters


@pytest.fixture(scope="session")
def reference64(trained_base, digits):
    return tune(trained_base, digits, "reference", batches=BATCHES)


@pytest.fixture(scope="session")
def reference32(trained_base, digits):
    return tune(trained_base, digits, "reference", torch.float32, batches=BATCHES)


def test_the_base_learns_the_digits(base, digits):
    assert score(base, digits.test, what="").accuracy >= 0.8


@pytest.mark.exhaustive
def test_the_job_as_it_stands_learns_the_digits_and_then_the_nines(tmp_path):
    result = mnist.run(MnistOptions(out=tmp_path))
    assert result.base.accuracy >= 0.93
    assert result.on.wrong[9] <= result.base.wrong[9] / 2
    assert result.proved


@pytest.mark.parametrize("method", WITH_PEERS)
def test_every_way_to_compute_lora_gives_the_figures_of_the_job(trained_once, method, tmp_path):
    result = mnist.run(MnistOptions(method=method, out=tmp_path))
    assert result.parameters[:3] == (2_807_010, 6_794, 2_813_804)
    assert round(result.parameters.percent, 3) == 0.242
    assert len(result.losses) == 100
    assert result.on.wrong[9] <= result.base.wrong[9] / 2
    assert result.off == result.base
    assert result.frozen_identical
    assert result.effective_holds
    assert result.off_identical
    assert result.proved


def test_full_fine_tuning_has_no_lora_to_report_on(trained_once, tmp_path):
    result = mnist.run(MnistOptions(method="full", batches=5, out=tmp_path))
    found = result.as_json()
    assert found["parameters"] == {"base": 2_807_010, "lora": 0, "total": 2_807_010, "percent": 0.0}
    for name in ("frozen_identical", "effective_holds", "off_identical", "adapter_bytes", "path"):
        assert found[name] is None
    assert found["wrong"]["off"] is None
    assert found["accuracy"]["off"] is None
    assert result.on != result.base
    assert result.proved
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mnist.png", "results.json"]


def test_the_files_hold_what_the_run_found(trained_once, tmp_path):
    result = mnist.run(MnistOptions(batches=5, out=tmp_path / "new" / "folder"))
    found = json.loads((tmp_path / "new" / "folder" / "results.json").read_text())
    assert found == result.as_json()
    assert list(found["accuracy"]) == list(found["wrong"]) == ["base", "on", "off"]
    assert all(len(counts) == 10 for counts in found["wrong"].values())
    assert found["digit"] == 9
    assert set(found["seconds"]) == {"read", "train", "test", "finetune", "prove", "save", "picture"}
    assert found["path"]["name"] == ("triton" if torch.cuda.is_available() else "torch")
    assert found["adapter_bytes"] == (tmp_path / "new" / "folder" / "adapter.safetensors").stat().st_size


@pytest.mark.parametrize("method", WITH_PEERS)
def test_the_adapter_file_makes_the_fine_tuned_net_of_a_plain_one(
    trained_once, base, digits, method, tmp_path
):
    options = MnistOptions(method=method, rank=3, alpha=6.0, batches=30, out=tmp_path)
    result = mnist.run(options)
    loaded = fastlora.load_adapter(base, tmp_path / "adapter.safetensors")
    assert loaded.linear2.scaling == 2.0
    assert score(loaded, digits.test, what="") == result.on
    assert fastlora.parameter_report(loaded).lora == result.parameters.lora == 3 * 6_794


def test_the_reference_moves_b_and_a(base, reference64):
    losses, adapters = reference64
    assert losses.shape == (BATCHES,)
    assert all(tensor.any() for tensor in adapters)


@pytest.mark.parametrize("method", ["fused", "parametrize"])
def test_in_fp64_the_methods_differ_by_rounding_alone(base, digits, reference64, method):
    losses, adapters = tune(base, digits, method, batches=BATCHES)
    torch.testing.assert_close(losses, reference64[0], rtol=1e-9, atol=0)
    for tensor, truth in zip(adapters, reference64[1], strict=True):
        assert (tensor - truth).norm() <= 1e-9 * truth.norm()


@pytest.mark.parametrize("method", ["fused", "parametrize"])
def test_in_fp32_the_methods_stay_within_the_error_budget(base, digits, reference64, reference32, method):
    losses, adapters = tune(base, digits, method, torch.float32, batches=BATCHES)
    assert_within_budget("losses", losses.float(), reference32[0], reference64[0])
    for tensor, torchs, truth in zip(adapters, reference32[1], reference64[1], strict=True):
        assert_within_budget("adapter", tensor, torchs, truth)


@pytest.mark.parametrize("sizes", NETS, ids=str)
def test_the_kernels_fine_tune_as_torch_does(digits, monkeypatch, sizes):
    monkeypatch.setattr(mlp, "SIZES", sizes)
    base = mlp.DigitsMLP(0)
    few = {"batches": 3, "alpha": 2.0}
    truth = tune(base, digits, "reference", **few)
    torchs = tune(base, digits, "reference", torch.float32, **few)
    with fastlora.set_backend("triton"):
        losses, adapters = tune(base, digits, "fused", torch.float32, **few)
    assert_within_budget("losses", losses.float(), torchs[0], truth[0])
    for tensor, expected, exact in zip(adapters, torchs[1], truth[1], strict=True):
        assert exact.any()
        assert_within_budget("adapter", tensor, expected, exact)


def test_the_same_seed_gives_the_same_bits(base, digits):
    first, second = (tune(base, digits, "fused", torch.float32, batches=20) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(map(torch.equal, first[1], second[1]))


def test_another_seed_gives_another_update(base, digits):
    first, second = (tune(base, digits, "fused", torch.float32, batches=3, seed=seed) for seed in (0, 1))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1][0], second[1][0])


def test_auto_takes_the_digit_most_often_wrong():
    counts = Score(accuracy=0.9, wrong=[3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    assert mnist.choose_digit(MnistOptions(digit="auto"), counts) == 5
    assert mnist.choose_digit(MnistOptions(digit=0), counts) == 0


def test_a_digit_that_the_data_lack_is_an_error(digits):
    with pytest.raises(DigitsError, match="there must be a 9"):
        digits.train.only(1).only(9)


def test_a_loss_that_explodes_stops_the_job(base, digits):
    options = MnistOptions(alpha=1e38, batches=5)
    with pytest.raises(FloatingPointError, match=r"Fine-tune on 9: the loss of batch \d of 5 is (nan|inf)"):
        mnist.finetune(options, base, digits.train.only(9))


def test_fine_tuning_leaves_the_base_alone(base, digits):
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    mnist.finetune(MnistOptions(method="full", batches=2), base, digits.train.only(9))
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_each_phase_is_tracked(base, digits):
    seen = []

    def track(items, what, total):
        items = list(items)
        seen.append((what, total, len(items)))
        return items

    mnist.finetune(MnistOptions(batches=3), base, digits.train.only(4), track)
    score(base, digits.test, what="Test", track=track)
    assert seen == [("Fine-tune on 4", 3, 3), ("Test", 2, 2)]


def test_a_missing_extra_is_named_before_anything_istrained_base(monkeypatch, tmp_path):
    monkeypatch.setattr(frame, "find_spec", lambda name: None)
    with pytest.raises(frame.MissingExtraError, match=r'safetensors: pip install "fastlora-triton\[demo\]"'):
        mnist.run(MnistOptions(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_kernels_that_cannot_run_are_refused_before_anything_istrained_base(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with fastlora.set_backend("triton"), pytest.raises(fastlora.BackendError, match="cannot run"):
        mnist.run(MnistOptions(out=tmp_path / "out", device="cpu"))
