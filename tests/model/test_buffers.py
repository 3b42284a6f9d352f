"""Buffers of frozen modules that training moves are named by the save that leaves them out."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora, load_pretrained, remove_lora, save_adapter, save_pretrained
from tests.models import adapted


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def moved(model):
    """After a forward pass that changes the running means, as training does."""
    model.train()(torch.randn(8, 6) + 1)
    return model


SAVES = {"directory": save_pretrained, "file": save_adapter}


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_running_means_that_moved_are_named_and_what_to_do(tmp_path, save):
    model = moved(adapted(net()))
    with pytest.warns(UserWarning, match=r"'1\.running_mean', '1\.running_var'.*modules_to_save.*eval"):
        save(model, tmp_path / "adapter")
    assert (tmp_path / "adapter").exists()


LIVES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "dtype": lambda model: model.to(torch.bfloat16),
    "compile": lambda model: torch.compile(model, backend="eager"),
    "lora again": lambda model: apply_lora(model, LoRAConfig(target_modules=["2"])),
}


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
def test_a_move_is_known_through_what_a_model_goes_through(tmp_path, life):
    model = adapted(net(), target_modules=["0"])
    save_pretrained(life(copy.deepcopy(model)), tmp_path / "still")  # warnings are errors here
    with pytest.warns(UserWarning, match=r"1\.running_mean"):
        save_pretrained(life(moved(model)), tmp_path / "moved")


def test_a_loaded_adapter_that_is_trained_further_is_watched_too(tmp_path):
    base = net()
    save_pretrained(adapted(copy.deepcopy(base)), tmp_path)
    model = moved(load_pretrained(base, tmp_path))
    with pytest.warns(UserWarning, match=r"1\.running_mean"):
        save_pretrained(model, tmp_path / "again")


def test_what_is_saved_or_did_not_move_is_not_named(tmp_path):
    save_pretrained(moved(adapted(net(), modules_to_save=["1"])), tmp_path)  # warnings are errors here
    still = adapted(net())
    still[1].eval()
    still(torch.randn(8, 6))
    save_pretrained(still, tmp_path)
    plain = moved(adapted(net()))
    remove_lora(plain)
    save_pretrained(adapted(plain), tmp_path)


class Counts(nn.Module):
    """Any buffers, and a way to change one of them."""

    def __init__(self, **buffers):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=name != "cache")


def test_any_persistent_buffer_counts_whatever_it_holds(tmp_path):
    model = adapted(
        Counts(
            seen=torch.zeros(3, dtype=torch.int64),
            codes=torch.randn(50, 40),
            turns=torch.ones(2, dtype=torch.complex64),
            unknown=torch.full((2,), torch.nan),
            fixed=torch.tensor([True]),
            cache=torch.zeros(2),
            empty=torch.zeros(0),
            absent=torch.zeros(2, device="meta"),
        )
    )
    save_pretrained(model, tmp_path)  # warnings are errors here
    for name in ("seen", "codes", "turns", "cache"):
        getattr(model, name).add_(1)
    with pytest.warns(UserWarning, match=r": 'seen', 'codes', 'turns'\. "):
        save_pretrained(model, tmp_path)
