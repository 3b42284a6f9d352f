"""Groups in real architectures of Transformers, natively and in PEFT's models."""

import copy
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from fastlora import LoRAConfig, apply_lora, group_counts, group_projections, ungroup_projections
from fastlora.integrations.peft import FastLinear, accelerate_peft, forward_counts, register, undo
from fastlora.measuring.errors import assert_within_budget
from tests.cases import quick
from tests.integrations.architectures import inputs_of, tiny
from tests.integrations.peft_models import Subclass
from tests.models import with_update

# The sizes of its groups in a block (of an encoder and a decoder for T5: k and v of the cross attention).
GROUPS = {
    "Llama": [3, 2],
    "Mistral": [3, 2],
    "Qwen3": [3, 2],
    "Gemma2": [3, 2],
    "Phi": [3],
    "Phi3": [],
    "Bert": [3],
    "ViT": [3],
    "T5": [3, 3, 2],
}


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Passes(TorchDispatchMode):
    """Counts our operators by their names."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().startswith("fastlora::"):
            self.counted[func.name().rpartition("_")[2]] += 1
        return func(*args, **(kwargs or {}))


def step(model, batch):
    """The loss, and all gradients in one vector; names of parameters that have one."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    found = {name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), torch.cat(list(found.values())), list(found)


def assert_same_step(model, apart, batch):
    """In fp64, as a deep net amplifies roundings: equal to fp32's rounding. fp32 is tested on the formula."""
    wide = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    loss, gradient, names = step(model.double(), wide)
    truth, expected, others = step(apart.double(), wide)
    assert names == others
    assert_within_budget("loss", loss.float(), truth.float(), truth)
    assert_within_budget("gradients", gradient.float(), expected.float(), expected)


def test_a_block_of_a_llama_takes_four_passes_each_way_instead_of_seven():
    model = with_update(apply_lora(tiny("Llama"), LoRAConfig(r=4)))
    model.enable_input_require_grads()
    batch, blocks = inputs_of(model), 2
    for each in (7, 4):
        with Passes() as passes:
            step(model, batch)
        assert passes.counted == {"forward": each * blocks, "backward": each * blocks}
        group_projections(model)


@pytest.mark.parametrize("name", quick(GROUPS, "Llama", "T5"))
def test_a_step_equals_that_of_layers_alone(name):
    model = with_update(apply_lora(tiny(name), LoRAConfig(r=4, alpha=6)))
    apart, batch = copy.deepcopy(model), inputs_of(model)
    report = group_projections(model)
    blocks = 2
    assert sorted(map(len, report.grouped)) == sorted(GROUPS[name] * blocks)
    assert_same_step(model, apart, batch)
    counts = group_counts(model)
    assert counts.hits == sum(size - 1 for size in GROUPS[name]) * blocks
    assert not counts.misses
    assert not counts.alone
    if name == "Phi3":
        assert "qkv_proj  it holds several projections in one already" in str(report)


def test_generation_with_a_cache_gives_the_same_tokens():
    model = with_update(apply_lora(tiny("Llama"), LoRAConfig(r=4, group=True)))
    prompt = torch.randint(3, 61, (2, 5))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ours = model.generate(prompt, **options)
    counts = group_counts(model)
    assert counts.hits == counts.rounds * 3 // 2 > 0
    ungroup_projections(model)
    assert torch.equal(ours, model.generate(prompt, **options))


def test_a_block_takes_four_passes_each_way():
    from torch.utils._python_dispatch import TorchDispatchMode

    names = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    model = with_update(apply_lora(tiny("Llama"), LoRAConfig(r=4, group=True)))
    with Seen():
        model(**inputs_of(model)).loss.backward()
    blocks = 2
    for direction in ("forward", "backward"):
        passes = [name for name in names if name.startswith("fastlora::") and name.endswith(direction)]
        assert len(passes) == 4 * blocks


def pefts(**options):
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, **options)
    torch.manual_seed(1)
    return config, tiny("Llama")


def test_pefts_layers_are_grouped_and_equal_to_alone():
    config, base = pefts()
    model = get_peft_model(base, config)
    apart = copy.deepcopy(model)
    accelerate_peft(apart)
    before = list(model.state_dict()), [name for name, _ in model.named_modules()]
    report = accelerate_peft(model, group=True)
    assert (list(model.state_dict()), [name for name, _ in model.named_modules()]) == before
    assert sorted(map(len, report.groups.grouped)) == [2, 2, 3, 3]
    assert "computed together" in str(report)
    batch = inputs_of(base)
    assert_same_step(model, apart, batch)
    assert group_counts(model).hits == 6
    assert forward_counts(model) == {"fused": 14}
    again = copy.deepcopy(model)
    step(again, batch)
    assert group_counts(again).hits == 6
    with model.disable_adapter():
        model(**batch)
    assert "adapters are disabled" in group_counts(model).alone
    undo(model)
    assert group_counts(model).groups == 0
    step(model, batch)


def test_layers_that_peft_makes_are_grouped_as_they_come():
    config, base = pefts()
    model = get_peft_model(base, register(config, group=True))
    apart = copy.deepcopy(model)
    ungroup_projections(apart)
    assert_same_step(model, apart, inputs_of(base))
    counts = group_counts(model)
    assert (counts.groups, counts.hits) == (4, 6)
    second = get_peft_model(tiny("Llama"), config)
    assert group_counts(second).groups == 4


def test_a_member_of_pefts_with_another_kind_of_weight_computes_alone():
    config, base = pefts()
    model = get_peft_model(base, config)
    accelerate_peft(model, group=True)
    layer = model.base_model.model.model.layers[0].self_attn.k_proj
    assert isinstance(layer, FastLinear)
    weight = layer.base_layer.weight
    layer.base_layer.weight = torch.nn.Parameter(weight.detach().as_subclass(Subclass), requires_grad=False)
    with torch.no_grad():
        model(**inputs_of(base))
    assert any("W is a" in why for why in group_counts(model).alone)
