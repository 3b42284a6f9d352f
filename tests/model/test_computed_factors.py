"""A and B that are computed from other tensors: by pruning, a norm or a parametrization."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from fastlora import (
    combine_adapters,
    freeze,
    load_pretrained,
    lora_plus_groups,
    remove_lora,
    save_pretrained,
    unfreeze,
)
from fastlora.analysis import update_report
from fastlora.measuring.errors import relative_error
from tests.models import adapted, mlp

COMPUTED = {
    "pruned": lambda adapter: prune.l1_unstructured(adapter, "lora_A", 0.5),
    "normed in a hook": lambda adapter: weight_norm(adapter, "lora_A"),
    "parametrized": lambda adapter: parametrizations.weight_norm(adapter, "lora_A"),
}


def computed(how, **options):
    """A model whose first A is computed, one optimizer's step after its last forward pass."""
    model = adapted(mlp(), **options)
    COMPUTED[how](model[0].active)
    model(torch.randn(4, 6))
    with torch.no_grad():
        for parameter in model[0].active.parameters():
            parameter.add_(0.5)
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("how", COMPUTED)
def test_saves_sums_and_measures_take_what_the_last_step_left(how, tmp_path):
    model, x = computed(how), torch.randn(4, 6)
    base = remove_lora(adapted(mlp()))
    base.load_state_dict({f"{i}.{own}": getattr(model[i], own) for i in (0, 2) for own in ("weight", "bias")})
    others = [copy.deepcopy(model.state_dict()) for _ in range(2)]
    save_pretrained(model, tmp_path)
    measured, summed = (computed(how) for _ in others)
    for other, state in zip((measured, summed), others, strict=True):
        other.load_state_dict(state)
    norm = update_report(measured).layers[0].norm
    combine_adapters(summed, {"default": 1.0}, "same")
    A, B = model[0].active()
    update = B.detach().double() @ A.detach().double() * model[0].scaling
    loaded = load_pretrained(base, tmp_path)
    assert torch.equal(loaded(x), model(x))
    same = summed[0].adapters["same"]
    both = same.lora_B.detach().double() @ same.lora_A.detach().double() * same.scaling
    assert relative_error(both, update) <= torch.finfo(torch.float32).eps * 2
    assert abs(norm / float(update.norm()) - 1) <= 8 * torch.finfo(torch.float32).eps


def test_a_magnitude_that_is_computed_is_saved_as_the_last_step_left_it(tmp_path):
    model, x = adapted(mlp(), dora=True), torch.randn(4, 6)
    base = remove_lora(adapted(mlp()))
    base.load_state_dict({f"{i}.{own}": getattr(model[i], own) for i in (0, 2) for own in ("weight", "bias")})
    prune.l1_unstructured(model[0].active, "lora_magnitude_vector", 0.5)
    model(x)
    with torch.no_grad():
        model[0].active.lora_magnitude_vector_orig.add_(0.5)
    save_pretrained(model, tmp_path)
    assert torch.equal(load_pretrained(base, tmp_path)(x), model(x))


@pytest.mark.parametrize("how", ["pruned", "parametrized"])
def test_what_a_is_computed_from_is_trained_and_w_s_stays_frozen(how):
    model = computed(how)
    parametrizations.spectral_norm(model[2])
    own = {id(parameter) for parameter in model[0].active.parameters()}
    for call in (freeze, unfreeze):
        call(model)
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert trained == own | {id(parameter) for parameter in model[2].active.parameters()}


def test_b_learns_faster_where_it_is_computed_too():
    model = adapted(nn.Linear(4, 3))
    parametrizations.weight_norm(model.active, "lora_B")
    groups = {group["name"]: group for group in lora_plus_groups(model, 1e-4, 16)}
    assert set(groups) == {"lora_A", "lora_B"}
    computed_from = model.active.parametrizations.lora_B.parameters()
    assert {*map(id, groups["lora_B"]["params"])} == {*map(id, computed_from)}
