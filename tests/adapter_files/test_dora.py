"""DoRA's files: PEFT reads ours and we read PEFT's; what does not fit is refused by name."""

import copy
import json
import shutil

import peft
import pytest
import torch
from torch import nn

from fastlora import (
    AdapterError,
    LoRAConfig,
    apply_lora,
    hot_swap,
    load_adapter,
    load_pretrained,
    save_adapter,
    save_pretrained,
)
from fastlora.layer.magnitude import row_norms
from tests.models import moved

X = torch.randn(4, 6)


def base():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).requires_grad_(False)


def ours(net, **options):
    return moved(apply_lora(net, LoRAConfig(**{"r": 2, "alpha": 3.0, "dora": True, **options})))


def test_peft_reads_ours(tmp_path):
    net = base()
    model = ours(copy.deepcopy(net), rank_pattern={"0": 1})
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["use_dora"] is True
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(net), str(tmp_path))
    torch.testing.assert_close(theirs(X), model(X))
    theirs.save_pretrained(str(tmp_path / "again"))
    torch.testing.assert_close(load_pretrained(net, tmp_path / "again")(X), model(X))


def test_we_read_pefts_and_fill_refill_and_add_adapters(tmp_path):
    net = base()
    config = peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["0", "2"])
    theirs = moved(peft.get_peft_model(copy.deepcopy(net), config))
    theirs.save_pretrained(str(tmp_path))
    found = load_pretrained(copy.deepcopy(net), tmp_path)
    torch.testing.assert_close(found(X), theirs(X))
    refilled = load_pretrained(ours(copy.deepcopy(net)), tmp_path)
    torch.testing.assert_close(refilled(X), theirs(X))
    added = load_pretrained(apply_lora(copy.deepcopy(net), LoRAConfig()), tmp_path, name="theirs")
    assert torch.equal(
        added[0].adapters["theirs"].lora_magnitude_vector, found[0].adapters["default"].lora_magnitude_vector
    )
    file = tmp_path / "one.safetensors"
    save_adapter(found, file)
    assert torch.equal(load_adapter(copy.deepcopy(net), file)(X), found(X))


def test_a_hot_swap_takes_the_magnitudes_too(tmp_path):
    net = base()
    model = ours(copy.deepcopy(net))
    save_pretrained(ours(copy.deepcopy(net), target_modules=["0"]), tmp_path)
    wanted = load_pretrained(copy.deepcopy(net), tmp_path)(X)
    hot_swap(model, tmp_path)
    torch.testing.assert_close(model(X), wanted)
    assert torch.equal(model[2].lora_magnitude_vector, row_norms(model[2]))
    with pytest.raises(AdapterError, match="use_dora must be False"):
        hot_swap(apply_lora(copy.deepcopy(net), LoRAConfig(r=2)), tmp_path)


def test_what_does_not_fit_is_refused(tmp_path):
    net = base()
    save_pretrained(ours(copy.deepcopy(net)), tmp_path)
    with pytest.raises(AdapterError, match="use_dora must be False, as adapter 'default'"):
        load_pretrained(apply_lora(copy.deepcopy(net), LoRAConfig(r=2)), tmp_path)
    plain = tmp_path / "plain"
    save_pretrained(apply_lora(copy.deepcopy(net), LoRAConfig(r=2)), plain)
    config = json.loads((plain / "adapter_config.json").read_text())
    (plain / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with (
        pytest.warns(UserWarning, match="was changed after"),
        pytest.raises(AdapterError, match=r"it is True, and '0' has none"),
    ):
        load_pretrained(copy.deepcopy(net), plain)
    shutil.copy(tmp_path / "adapter_model.safetensors", plain)
    (plain / "adapter_config.json").write_text(json.dumps(config))
    with (
        pytest.warns(UserWarning, match="was changed after"),
        pytest.raises(AdapterError, match=r"it is False, and '0' has one"),
    ):
        load_pretrained(copy.deepcopy(net), plain)
