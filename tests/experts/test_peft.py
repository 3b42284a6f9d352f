"""PEFT's wrappers of experts with our forward: the same numbers where it runs, else the same bits."""

import copy
import io

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import ParamWrapper

from fastlora.integrations.peft import (
    FastParamWrapper,
    accelerate_peft,
    forward_counts,
    register,
    undo,
)
from fastlora.measuring.errors import assert_within_budget
from tests.experts.mixtures import ADAPTED, EXPERTS, inputs_of, tiny, wrappers
from tests.experts.test_models import outcome

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")

MODELS = [pytest.param(name, marks=[] if name == "Qwen3Moe" else pytest.mark.exhaustive) for name in ADAPTED]


def config(**options):
    parameters = {"target_modules": [], "target_parameters": list(EXPERTS), "init_lora_weights": False}
    return LoraConfig(**{"r": 3, "lora_alpha": 6, **parameters, **options})


def twins(name="Qwen3Moe", **options):
    """PEFT's model, and a copy of it for us."""
    theirs = get_peft_model(tiny(name), config(**options))
    return theirs, copy.deepcopy(theirs)


def results(model, inputs):
    """Logits and every gradient."""
    torch.manual_seed(3)
    model.zero_grad()
    out = model(**inputs)
    if out.loss.requires_grad:
        out.loss.backward()
    return {
        "logits": out.logits.detach(),
        **{n: p.grad for n, p in model.named_parameters() if p.grad is not None},
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_fused_forward_computes_what_pefts_does(name):
    theirs, ours = twins(name)
    report = accelerate_peft(ours)
    layers = len(wrappers(theirs))
    assert len(report.fused) == layers
    assert not report.kept
    assert not report.stock
    inputs = inputs_of(theirs)
    single = outcome(theirs, inputs)
    outcome(ours, inputs)
    assert forward_counts(ours) == {"fused": layers}
    theirs.base_model.model.set_experts_implementation("eager")  # torch's grouped_mm knows no fp64
    mine, truth = outcome(ours.double(), inputs), outcome(theirs.double(), inputs)
    assert forward_counts(ours) == {"fused": 2 * layers}
    for what in truth:
        assert_within_budget(what, mine[what], single[what], truth[what])


def merged(model):
    model.merge_adapter()


def two_active(model):
    model.add_adapter("second", config())
    model.base_model.set_adapter(["default", "second"])


def disabled(model):
    model.base_model.disable_adapter_layers()


def base_trained(model):
    for name, wrapper in wrappers(model).items():
        wrapper.get_param().requires_grad_("down_proj" in name)


def hooked(model):
    for wrapper in wrappers(model).values():
        wrapper.get_base_layer().register_forward_hook(lambda *_: None)


def in_fp8(model):
    """Weights in eight bits, as PEFT adds to them; the model then computes with them in fp32."""
    for wrapper in wrappers(model).values():
        wrapper.get_param().data = wrapper.get_param().data.to(torch.float8_e4m3fn)


STATES = {
    "merged": (merged, "adapters are merged"),
    "two active": (two_active, "2 adapters are active"),
    "disabled": (disabled, "adapters are disabled"),
    "base trained": (base_trained, "the base layer is trained too"),
    "hooked": (hooked, "the experts have hooks or another forward"),
}


@pytest.mark.parametrize("state", STATES)
def test_other_states_run_pefts_own_forward_bit_for_bit(state):
    change, why = STATES[state]
    torch.manual_seed(1)
    theirs, ours = twins()
    for model in (theirs, ours):
        torch.manual_seed(2)
        change(model)
    report = accelerate_peft(ours)
    inputs = inputs_of(theirs)
    want, got = results(theirs, inputs), results(ours, inputs)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], value) for name, value in want.items())
    counts = forward_counts(ours)
    assert counts[why] > 0
    assert not counts["fused"]
    assert len(report.stock) == 4


def test_low_precision_weights_are_left_to_peft():
    theirs, ours = twins()
    for model in (theirs, ours):
        in_fp8(model)
    accelerate_peft(ours)
    wrapper = next(iter(wrappers(ours).values()))
    hidden, index, weights = torch.randn(4, 32), torch.zeros(4, 2, dtype=torch.int64), torch.ones(4, 2)
    with pytest.raises(RuntimeError):  # as PEFT's own does: the CPU multiplies no fp8
        next(m for m in ours.modules() if isinstance(m, FastParamWrapper))(hidden, index, weights)
    assert "the dtypes are not ones that are fused" in forward_counts(ours)
    assert wrapper.get_param().dtype == torch.float8_e4m3fn


def test_merging_disabling_and_switching_back_takes_the_fused_forward_again():
    theirs, ours = twins()
    accelerate_peft(ours)
    inputs = inputs_of(theirs)
    first = results(ours, inputs)
    with ours.disable_adapter():
        assert torch.equal(ours(**inputs).logits, tiny()(**inputs).logits)
    ours.merge_adapter()
    ours.unmerge_adapter()
    ours.add_adapter("second", config(r=2))
    ours.set_adapter("second")
    assert not torch.allclose(ours(**inputs).logits, first["logits"])
    ours.set_adapter("default")
    torch.testing.assert_close(results(ours, inputs)["logits"], first["logits"])
    assert forward_counts(ours)["fused"] == 4 * 3


def test_register_makes_the_layers_that_accelerate_swaps():
    model = get_peft_model(tiny(), register(config(target_modules=["q_proj"])))
    assert {type(each) for each in wrappers(model).values()} == {FastParamWrapper}
    report = accelerate_peft(model)
    assert len(report.fused) == 6
    assert str(report) == "6 of 6 layers take fastlora's fused forward"
    model(**inputs_of(model)).loss.backward()
    assert forward_counts(model) == {"fused": 6}


def test_copies_pickles_and_undo_keep_the_model_pefts():
    theirs, ours = twins()
    accelerate_peft(ours)
    inputs = inputs_of(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    want = ours(**inputs).logits
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for again in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        assert torch.equal(again(**inputs).logits, want)
    undo(ours)
    assert {type(each) for each in wrappers(ours).values()} == {ParamWrapper}
    assert torch.equal(ours(**inputs).logits, theirs(**inputs).logits)
    assert not forward_counts(ours)
    for mine, other in zip(wrappers(ours).values(), wrappers(theirs).values(), strict=True):
        assert vars(mine).keys() == vars(other).keys()


def test_parameters_that_are_no_stacks_of_experts_are_kept():
    model = get_peft_model(tiny(), config(target_parameters=["q_proj.weight", "down_proj"]))
    report = accelerate_peft(model)
    assert len(report.fused) == 2
    assert set(report.kept.values()) == {
        "its parameter is not a stack of experts that Linear gives Transformers' hook"
    }
