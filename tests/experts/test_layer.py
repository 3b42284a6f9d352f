"""A module of experts with LoRA, in every layout that Transformers' hook has, and what its layers promise."""

import copy
import io

import pytest
import torch
from torch import nn
from transformers.integrations.moe import use_experts_implementation

import fastlora
from fastlora import LoRAConfig, apply_lora, lora_layers, remove_lora
from fastlora.formula.oracle import effective_weight
from fastlora.measuring.errors import assert_within_budget
from tests.experts.mixtures import with_update

E, K, INNER, T, TOP = 4, 10, 6, 9, 2


def experts_class(**marks):
    """A class of experts as Transformers', with its own plain forward."""

    @use_experts_implementation(**marks)
    class Experts(nn.Module):
        def __init__(self, config):
            super().__init__()
            turned, gated = marks.get("is_transposed"), marks.get("has_gate", True)
            first, wide = ("gate_up_proj", 2 * INNER) if gated else ("up_proj", INNER)
            for name, N, inner in ((first, wide, K), ("down_proj", K, INNER)):
                shape = (E, inner, N) if turned else (E, N, inner)
                self.register_parameter(name, nn.Parameter(torch.randn(shape) / inner**0.5))
                if marks.get("has_bias"):
                    self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(E, N)))
            self.num_experts, self.act_fn = E, nn.SiLU()
            if marks.get("has_post_expert_norm"):
                self.post_expert_norm = nn.LayerNorm(K)

        def forward(self, x, index, weights):
            y = torch.zeros_like(x)
            for e in range(E):
                rows, place = torch.where(index == e)
                first = "gate_up_proj" if self.has_gate else "up_proj"
                h = self.linear(x[rows], first, e)
                h = self._apply_gate(h) if self.has_gate else self.act_fn(h)
                h = self.linear(h, "down_proj", e)
                h = self.post_expert_norm(h) if self.has_post_expert_norm else h
                y = y.index_add(0, rows, h * weights[rows, place, None])
            return y

        def linear(self, x, name, e):
            W = getattr(self, name)[e]
            y = x @ W if self.is_transposed else x @ W.T
            return y + getattr(self, f"{name}_bias")[e] if self.has_bias else y

    if not marks.get("is_concatenated", True):
        # Without attributes of its own, as the class has the default by now.
        Experts._apply_gate = lambda self, h: nn.functional.silu(h[..., ::2]) * (h[..., 1::2] + 1)
    return Experts


LAYOUTS = {
    "plain": {},
    "transposed, interleaved, with biases": {
        "is_transposed": True,
        "is_concatenated": False,
        "has_bias": True,
    },
    "without a gate": {"has_gate": False},
    "with a norm behind": {"has_post_expert_norm": True, "has_bias": True},
}


def module(layout="plain", implementation="eager"):
    """(net with the module as its child "experts", a plain copy of the module)."""
    experts = experts_class(**LAYOUTS[layout])(Config(implementation))
    return nn.ModuleDict({"experts": experts}), copy.deepcopy(experts)


class Config:
    """As Transformers' configs tell an implementation."""

    def __init__(self, implementation):
        self._experts_implementation_internal = implementation

    @property
    def _experts_implementation(self):
        return self._experts_implementation_internal


def arguments(dtype=torch.float32):
    x = torch.randn(T, K, dtype=dtype, requires_grad=True)
    index = torch.stack([torch.randperm(E)[:TOP] for _ in range(T)])
    return x, index, torch.rand(T, TOP, dtype=dtype, requires_grad=True)


def results(experts, given, trained=()):
    y = experts(*given)
    found = torch.autograd.grad(y, (given[0], given[2], *trained), torch.ones_like(y).mul(0.7))
    return [y.detach(), *found]


def with_lora(net, **options):
    return with_update(
        apply_lora(
            net, LoRAConfig(**{"r": 2, "alpha": 3, "target_parameters": ["down_proj", up_of(net)], **options})
        )
    )


def up_of(net):
    return "gate_up_proj" if net["experts"].has_gate else "up_proj"


def merged_plain(net, plain):
    """The plain module with W + s B A as its weights."""
    for layer in dict(lora_layers(net)).values():
        W = layer.weight.detach()
        W = W.transpose(1, 2) if layer.transposed else W
        total = effective_weight(W, layer.lora_A.detach(), layer.lora_B.detach(), layer.scaling)
        getattr(plain, layer.parameter).data = total.transpose(1, 2) if layer.transposed else total
    return plain


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_computes_with_w_and_the_update(layout):
    net, plain = module(layout)
    with_lora(net)
    given = arguments()
    wide = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in given]
    torchs = results(merged_plain(net, copy.deepcopy(plain)), given)
    truth = results(merged_plain(net.double(), plain.double()), wide)
    for name, mine, theirs, true in zip(
        ("y", "dx", "dw"), results(net.float()["experts"], given), torchs, truth, strict=True
    ):
        assert_within_budget(name, mine, theirs, true)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merging_gives_that_weight_and_unmerging_w_bit_for_bit(layout):
    net, plain = module(layout)
    with_lora(net)
    given, before = arguments(), {n: p.detach().clone() for n, p in net.named_parameters()}
    merged = merged_plain(net, copy.deepcopy(plain))
    fastlora.merge_lora(net)
    assert torch.equal(net["experts"](*given), merged(*given))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    fastlora.unmerge_lora(net)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    remove_lora(net, merge=True)
    assert torch.equal(net["experts"](*given), merged(*given))
    assert list(net.state_dict()) == [f"experts.{name}" for name in plain.state_dict()]


def test_one_parameter_alone_and_the_other_as_it_is():
    net, plain = module()
    with_lora(net, target_parameters=["down_proj"])
    given = arguments(torch.float64)
    want = results(merged_plain(net.double(), plain.double()), given)
    for mine, theirs in zip(results(net["experts"], given), want, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_dropout_drops_in_training_alone_and_gradients_are_the_masks():
    net, _ = module()
    with_lora(net, dropout=0.5).double()
    given = arguments(torch.float64)
    net.eval()
    still = net["experts"](*given)
    assert torch.equal(still, net["experts"](*given))
    net.train()
    torch.manual_seed(1)
    moved = net["experts"](*given)
    assert not torch.equal(moved, net["experts"](*given))

    def seeded(x, weights):
        torch.manual_seed(1)
        return net["experts"](x, given[1], weights)

    assert torch.equal(seeded(given[0], given[2]), moved)
    assert torch.autograd.gradcheck(seeded, (given[0], given[2]), fast_mode=True)


def test_adapters_are_added_switched_combined_and_deleted():
    net, plain = module()
    with_lora(net)
    given = arguments()
    first = net["experts"](*given)
    fastlora.add_adapter(net, "small", LoRAConfig(r=1, target_parameters=["down_proj"]))
    layers = dict(lora_layers(net))
    nn.init.normal_(layers["experts.down_proj"].adapters["small"].lora_B)
    with fastlora.use_adapter(net, "small"):
        second = net["experts"](*given)
        assert layers["experts.gate_up_proj"].active is None
        assert [n for n, p in net.named_parameters() if p.requires_grad] == [
            f"experts.lora.down_proj.adapters.small.lora_{letter}" for letter in "AB"
        ]
    assert not torch.equal(first, second)
    fastlora.combine_adapters(net, {"default": 1.0, "small": 0.0}, "sum")
    fastlora.combine_adapters(net, {"default": 1.0}, "near", r=1)
    with fastlora.use_adapter(net, "sum"):
        torch.testing.assert_close(net["experts"](*given), first)
    assert layers["experts.down_proj"].adapters["near"].lora_A.shape == (E, 1, INNER)
    for name in ("small", "sum", "near"):
        fastlora.delete_adapter(net, name)
    assert torch.equal(net["experts"](*given), first)
    remove_lora(net)
    assert torch.equal(net["experts"](*given), plain(*given))


def test_an_adapter_may_reach_experts_that_had_no_lora_and_leaves_none_behind():
    net, plain = module()
    with_lora(net, target_parameters=["down_proj"])
    fastlora.add_adapter(net, "other", LoRAConfig(r=1, target_parameters=["gate_up_proj"]))
    assert [name for name, _ in lora_layers(net)] == ["experts.gate_up_proj", "experts.down_proj"]
    given = arguments()
    with fastlora.use_adapter(net, "other"):
        assert torch.allclose(net["experts"](*given), plain(*given))
    fastlora.delete_adapter(net, "other")
    assert [name for name, _ in lora_layers(net)] == ["experts.down_proj"]


def test_state_dicts_load_with_and_without_updates_merged_or_not():
    net, plain = module()
    with_lora(net)
    state, given = copy.deepcopy(net.state_dict()), arguments()
    want = net["experts"](*given)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    fastlora.merge_lora(net)
    net.load_state_dict(state)
    assert torch.equal(net["experts"](*given), want)
    # A checkpoint of the plain module leaves the updates.
    fastlora.merge_lora(net)
    net.load_state_dict({f"experts.{name}": value for name, value in plain.state_dict().items()})
    assert torch.equal(net["experts"](*given), want)
    # A and B alone leave W.
    fastlora.merge_lora(net)
    net.load_state_dict({name: value for name, value in state.items() if "lora_" in name}, strict=False)
    assert torch.equal(net["experts"](*given), want)


def test_the_models_own_choice_of_implementation_stays_its_own():
    net, _ = module()
    config = net["experts"].config
    with_lora(net)
    given = arguments()
    want = net["experts"](*given)
    config._experts_implementation_internal = "batched_mm"
    assert torch.equal(net["experts"](*given), want)
    remove_lora(net)
    assert net["experts"].config is config


def test_inits_ranks_alphas_and_rslora_are_each_stacks():
    net, _ = module()
    options = {"rank_pattern": {"gate_up_proj": 4}, "alpha_pattern": {"down_proj": 5}, "rslora": True}
    apply_lora(
        net,
        LoRAConfig(
            r=2, alpha=3, init="orthogonal", target_parameters=["gate_up_proj", "down_proj"], **options
        ),
    )
    up, down = (dict(lora_layers(net))[f"experts.{name}"] for name in ("gate_up_proj", "down_proj"))
    assert up.lora_A.shape == (E, 4, K)
    assert down.lora_B.shape == (E, K, 2)
    assert (up.scaling, down.scaling) == (3 / 2, 5 / 2**0.5)
    for layer in (up, down):
        assert not (layer.lora_B @ layer.lora_A).any()
        assert layer.lora_A.flatten(1).any(1).all()
        assert layer.lora_B.flatten(1).any(1).all()
    up.reset_adapter()
    assert not (up.lora_B @ up.lora_A).any()


def test_trained_base_weights_are_told_and_get_no_gradient():
    net, _ = module()
    with_lora(net)
    net["experts"].down_proj.requires_grad_(True)
    with pytest.warns(UserWarning, match="down_proj of experts with LoRA requires a gradient, and gets none"):
        net["experts"](*arguments()).sum().backward()
    assert net["experts"].down_proj.grad is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda net: setattr(net["experts"], "_is_expert_parallel", True), TypeError, "expert parallelism"),
        (lambda net: setattr(net["experts"], "lora", nn.Linear(1, 1)), TypeError, "of its own called 'lora'"),
        (lambda net: setattr(net["experts"], "forward", print), TypeError, "must keep its class's forward"),
        (lambda net: with_lora(net), ValueError, "without LoRA; 'experts.down_proj' has"),
        (lambda net: setattr(net["experts"], "down_proj", None), ValueError, "must match a module"),
    ],
)  # fmt: skip
def test_what_takes_no_lora_is_named_and_stays_as_it_was(change, error, message):
    net, _ = module()
    change(net)
    before = list(net.state_dict())
    with pytest.raises(error, match=message):
        apply_lora(net, LoRAConfig(target_parameters=["down_proj"]))
    assert list(net.state_dict()) == before


def test_experts_spread_over_processes_later_are_refused_by_name():
    net, _ = module()
    with_lora(net)
    net["experts"]._is_expert_parallel = True
    with pytest.raises(TypeError, match="these are spread over processes"):
        net["experts"](*arguments())


def test_starts_from_w_and_analysis_are_refused_by_name():
    net, _ = module()
    with_lora(net)
    with pytest.raises(ValueError, match=r"must be linear to be started from W; 'experts\.gate_up_proj"):
        fastlora.initialize(net, "pissa")
    from fastlora.analysis.updates import layers_with

    with (
        pytest.warns(UserWarning, match="updates of experts are not analyzed"),
        pytest.raises(ValueError, match="must be linear to be analyzed"),
    ):
        layers_with(net, None)


def test_excluded_experts_stay_plain():
    net = nn.ModuleDict({"experts": module()[0]["experts"], "router": nn.Linear(K, E)})
    apply_lora(net, LoRAConfig(exclude_modules=["experts"]))
    assert [name for name, _ in lora_layers(net)] == ["router"]
    with pytest.raises(ValueError, match="leaves none of target_parameters"):
        apply_lora(net, LoRAConfig(exclude_modules=["experts"], target_parameters=["down_proj"]))


def test_copies_and_reports_count_every_expert():
    net, _ = module()
    with_lora(net)
    report = fastlora.parameter_report(net)
    up, down = report.layers
    assert (up.experts, up.r, up.base, up.lora) == (E, 2, E * K * 2 * INNER, E * 2 * (K + 2 * INNER))
    assert f"{E} x {INNER} -> {K}" in str(report)
    assert report.trainable == report.lora == up.lora + down.lora
    groups = fastlora.lora_plus_groups(net, 1e-3, 16)
    assert [len(group["params"]) for group in groups] == [2, 2]
    twin, given = copy.deepcopy(net), arguments()
    assert torch.equal(twin["experts"](*given), net["experts"](*given))
    nn.init.zeros_(dict(lora_layers(twin))["experts.down_proj"].lora_B)
    assert not torch.equal(twin["experts"](*given), net["experts"](*given))
    fastlora.merge_lora(twin)
    assert not torch.equal(twin["experts"].gate_up_proj, net["experts"].gate_up_proj)


def test_half_precision_and_devices_move_with_the_module():
    net, _ = module()
    apply_lora(net.bfloat16(), LoRAConfig(r=2, target_parameters=["down_proj"]))
    (layer,) = dict(lora_layers(net)).values()
    assert layer.lora_A.dtype == torch.float32
    assert net.to("meta") is net
    assert layer.lora_A.is_meta


def test_it_is_saved_by_torch():
    net, _ = module()
    with_lora(net)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = with_lora(module()[0])
    other.load_state_dict(torch.load(file))
    given = arguments()
    assert torch.equal(other["experts"](*given), net["experts"](*given))
