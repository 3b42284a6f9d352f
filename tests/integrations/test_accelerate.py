"""Models that accelerate prepares or offloads: what was trained is saved and read back, or it is refused."""

import copy

import peft
import pytest
import torch

from fastlora import (
    LoRAConfig,
    add_adapter,
    initialize,
    load_pretrained,
    merge_lora,
    remove_lora,
    save_pretrained,
    set_adapter,
)
from fastlora.integrations.peft import accelerate_peft, undo
from tests.layer.test_training_warnings import optimizer_of
from tests.models import adapted, mlp

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _state_of_its_own():
    """Accelerate has one state a process, which Trainer uses too."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def steps(accelerator, model, optimizer):
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 6)).square().sum()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_prepared_model_resumes_to_the_bit_and_its_adapter_reads_back(tmp_path, precision):
    torch.manual_seed(3)
    base = mlp()
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    lora = adapted(mlp())
    lora.load_state_dict(base.state_dict(), strict=False)
    model, optimizer = accelerator.prepare(lora, optimizer_of(lora, torch.optim.AdamW))
    steps(accelerator, model, optimizer)
    accelerator.save_state(tmp_path / "state")
    save_pretrained(accelerator.unwrap_model(model), tmp_path / "adapter")
    read = load_pretrained(base, tmp_path / "adapter")
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), lora.parameters(), strict=True))
    assert torch.equal(accelerator.get_state_dict(model)["0.adapters.default.lora_B"], read[0].lora_B)
    once = steps(accelerator, model, optimizer)
    accelerator.load_state(tmp_path / "state")
    assert steps(accelerator, model, optimizer) == once


def offloaded():
    model = add_adapter(adapted(mlp()), "other", LoRAConfig(r=2))
    return accelerate.cpu_offload(model, execution_device="cpu")


CHANGES = {
    "merge_lora": lambda model, path: merge_lora(model),
    "merge": lambda model, path: model[0].merge(),
    "initialize": lambda model, path: initialize(model, "pissa"),
    "set_adapter": lambda model, path: set_adapter(model, "other"),
    "save": lambda model, path: save_pretrained(model, path / "new", adapters=["default"]),
    "load": load_pretrained,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_needs_the_numbers_of_an_offloaded_model_is_refused_and_nothing_changes(tmp_path, change):
    save_pretrained(adapted(mlp()), tmp_path)
    model, x = offloaded(), torch.randn(3, 6)
    before = model(x)
    with pytest.raises(ValueError, match=r"accelerate offloaded it.*remove_hook_from_submodules"):
        change(model, tmp_path)
    assert torch.equal(model(x), before)


def test_an_offloaded_model_merges_once_it_is_brought_back():
    model, x = offloaded(), torch.randn(3, 6)
    before = model(x)
    accelerate.hooks.remove_hook_from_submodules(model)
    merge_lora(model.eval())
    torch.testing.assert_close(model(x), before)


def test_a_model_whose_hooks_were_taken_off_takes_lora_and_gives_it_back():
    model, x = mlp(), torch.randn(4, 6)
    truth = copy.deepcopy(model)
    hooked(model)
    adapted(model)
    truth.load_state_dict({key: value for key, value in model.state_dict().items() if "adapters" not in key})
    assert not torch.equal(model(x), truth(x))
    y = model(x)
    hooked(model)
    assert torch.equal(model(x), y)
    assert torch.equal(remove_lora(model)(x), truth(x))
    assert all(type(layer) is torch.nn.Linear for layer in (model[0], model[2]))


def test_pefts_layers_are_their_own_again_once_hooks_were_taken_off():
    model = peft.get_peft_model(
        mlp(), peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    )
    x = torch.randn(4, 6)
    y = model(x)
    accelerate_peft(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    accelerate.hooks.remove_hook_from_submodules(model)
    undo(model)
    assert "forward" not in vars(model.base_model.model[0])
    assert torch.equal(model(x), y)


def hooked(model):
    """Have accelerate offload the model and bring it back."""
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    model(torch.ones(1, 6))
    accelerate.hooks.remove_hook_from_submodules(model)
    assert "forward" in vars(model[0])
