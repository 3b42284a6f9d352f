"""What is saved of updates that were started from W: plain LoRA for the W from before."""

import copy

import pytest
import torch

import fastlora
from fastlora import LoRAConfig, apply_lora, initialize
from fastlora.layer.base_weights import adapters_for_original
from fastlora.measuring.errors import assert_within_budget
from tests.models import trainable
from tests.started import DTYPES, STARTS, rescaled, started, trained


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_saved_is_plain_lora_for_the_weights_from_before(tmp_path, start, dtype, rslora):
    base, model, x = started(start, dtype, rslora=rslora)
    truth = rescaled(trained(model, x))(x.double()).detach()
    fastlora.save_pretrained(model, tmp_path)
    plain = fastlora.load_pretrained(copy.deepcopy(base), tmp_path)
    assert plain[0].r == 6
    assert torch.equal(plain[0].weight, base[0].weight)
    with torch.no_grad():
        assert_within_budget("y", plain(x), model(x), truth, extra=torch.finfo(dtype).eps)
    fastlora.save_adapter(model, tmp_path / "adapter.safetensors")
    single = fastlora.load_adapter(copy.deepcopy(base), tmp_path / "adapter.safetensors")
    assert torch.equal(single(x), plain(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_saved_at_its_start_cancels_to_the_bit(tmp_path, dtype):
    base, model, _ = started("pissa", dtype, alpha=7.0)
    fastlora.save_pretrained(model, tmp_path)
    plain = fastlora.load_pretrained(copy.deepcopy(base), tmp_path)[0]
    assert torch.equal(plain.lora_A[:3], plain.lora_A[3:])
    assert torch.equal(plain.lora_B[:, :3], -plain.lora_B[:, 3:])
    assert plain.scaling == model[0].scaling


def test_peft_loads_what_was_saved(tmp_path):
    peft = pytest.importorskip("peft")
    base, model, x = started("pissa")
    truth = rescaled(trained(model, x))(x.double()).detach()
    fastlora.save_pretrained(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    with torch.no_grad():
        assert_within_budget("y", loaded(x), model(x), truth, extra=torch.finfo(torch.float32).eps)


def test_an_alpha_changed_later_is_in_the_file():
    _, model, x = started("pissa")
    layer = trained(model, x)[0]
    whole = fastlora.layer.base_weights.original_weight(layer).double()
    layer.alpha *= 3
    A, B, options = adapters_for_original(layer)["default"]
    beside = whole + options.scaling * (B.double() @ A.double())
    assert_within_budget("W", beside.float(), layer.effective_weight(), rescaled(layer).effective_weight(),
                         extra=torch.finfo(torch.float32).eps)  # fmt: skip


def test_a_checkpoint_brings_the_start_along():
    base, model, x = started("olora")
    trained(model, x)
    fresh = apply_lora(copy.deepcopy(base), LoRAConfig(r=3, alpha=5.0))
    with pytest.raises(RuntimeError, match="start_A"):
        copy.deepcopy(fresh).load_state_dict(model.state_dict())
    initialize(fresh, "pissa")
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    with fastlora.lora_disabled(fresh), fastlora.lora_disabled(model):
        assert torch.equal(fresh(x), model(x))
    assert trainable(fresh) == {f"{index}.adapters.default.lora_{side}" for index in (0, 2) for side in "AB"}
