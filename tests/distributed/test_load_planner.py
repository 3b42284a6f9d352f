"""Checkpoints with the old names of A and B, in one process."""

import pytest
import torch
from torch.distributed import checkpoint

from fastlora import FusedLoRALinear
from fastlora.parallel import LoadPlanner

# torch says that it saves in one process, which is meant here.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def layer(value):
    made = FusedLoRALinear(6, 4, r=2)
    with torch.no_grad():
        made.lora_B.fill_(value)
    return made


def saved(folder, state):
    checkpoint.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def read(folder, state, **options):
    checkpoint.load(state, checkpoint_id=folder, planner=LoadPlanner(**options), no_dist=True)
    return state


def named_before(state):
    return {name.replace("adapters.default.", ""): value for name, value in state.items()}


@pytest.mark.parametrize("options", [{}, {"flatten_state_dict": False}])
def test_a_layer_alone_is_read_by_its_old_names(tmp_path, options):
    folder = saved(tmp_path / "old", named_before(layer(3.0).state_dict()))
    fresh = layer(0.0)
    read(folder, fresh.state_dict(), **options)
    assert (fresh.lora_B == 3).all()


def test_what_else_a_checkpoint_holds_is_read_whatever_its_name(tmp_path):
    old = {"model": named_before(layer(3.0).state_dict()), "run": {"params": "saved", "step": 7}}
    folder = saved(tmp_path / "old", old)
    state = {"model": layer(0.0).state_dict(), "run": {"params": "fresh", "step": 0}}
    assert read(folder, state)["run"] == {"params": "saved", "step": 7}
