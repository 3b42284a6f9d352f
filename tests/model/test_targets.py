"""Which layers a config means: names, endings, regular expressions, all-linear, ranks by pattern."""

import pytest
from torch import nn

from fastlora import LoRAConfig, apply_lora
from fastlora.model.name_matching import near_names
from fastlora.model.targets import find_targets
from tests.models import Block, Shared, TiedLM, mlp


def names(model, **options):
    return [target.name for target in find_targets(model, LoRAConfig(**options))]


QV = [f"layers.{i}.attn.{name}" for i in range(2) for name in ("q_proj", "v_proj")]
MLP = [f"layers.{i}.mlp.{j}" for i in range(2) for j in (0, 2)]


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        (["q_proj", "v_proj"], QV),
        (["attn.q_proj", "attn.v_proj"], QV),
        (["layers.1.mlp.0"], ["layers.1.mlp.0"]),
        (["mlp.0", "mlp.2"], MLP),
        (r".*\.[qv]_proj", QV),
        (r"layers\.0\..*\.q_proj", ["layers.0.attn.q_proj"]),
        (["lm_head"], ["lm_head"]),
    ],
)
def test_names_match_whole_or_at_the_end_and_expressions_match_whole(target_modules, expected):
    assert names(TiedLM(), target_modules=target_modules) == expected


@pytest.mark.parametrize("pattern", ["q_proj", r"attn\.q_proj", r"layers\.0\.attn\.q", "_proj"])
def test_part_of_a_name_is_no_match_for_an_expression(pattern):
    with pytest.raises(ValueError, match=r"must match a module; it matches none"):
        names(TiedLM(), target_modules=pattern)


def test_an_ending_matches_at_a_dot_only():
    with pytest.raises(ValueError, match=r"'proj' must match a module; it matches none"):
        names(TiedLM(), target_modules=["proj"])


@pytest.mark.parametrize("all_linear", ["all-linear", "ALL-Linear"])
def test_all_linear_takes_every_linear_layer_but_the_output_head(all_linear):
    model = TiedLM()
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert names(model, target_modules=all_linear) == [name for name in linears if name != "lm_head"]


def test_all_linear_leaves_out_the_head_of_a_model_inside_another():
    wrapper = nn.ModuleDict({"lm": TiedLM(), "value": nn.Linear(4, 1)})
    found = names(wrapper)
    assert "value" in found
    assert "lm.lm_head" not in found


def test_all_linear_leaves_out_subclasses_whose_weight_is_used_without_calling_them():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert names(layer) == ["linear1", "linear2"]


def test_all_linear_on_a_linear_layer_is_the_layer():
    assert names(nn.Linear(4, 3)) == [""]


def test_all_linear_takes_what_has_no_lora_yet():
    model = apply_lora(mlp(), LoRAConfig(target_modules=["0"]))
    assert names(model) == ["2"]


@pytest.mark.parametrize(
    ("exclude_modules", "left"),
    [
        (["v_proj", "mlp.0", "mlp.2"], ["attn.q_proj", "attn.k_proj"]),
        (r"mlp\..*|.*\.k_proj", ["attn.q_proj", "attn.v_proj"]),
    ],
)
def test_what_is_excluded_is_left_out(exclude_modules, left):
    assert names(Block(), exclude_modules=exclude_modules) == left
    assert names(Block(), target_modules=r".*_proj|mlp\.[02]", exclude_modules=exclude_modules) == left


def test_a_shared_module_is_one_target_that_any_of_its_names_matches():
    assert names(Shared()) == ["first", "last"]
    assert names(Shared(), target_modules=["again.0"]) == ["first"]
    assert names(Shared(), exclude_modules=["again.0"]) == ["last"]
    (target,) = find_targets(Shared(), LoRAConfig(target_modules=["first"], rank_pattern={"again.0": 3}))
    assert target.r == 3


def test_ranks_and_alphas_follow_the_first_pattern_that_matches_the_end_of_a_name():
    config = LoRAConfig(
        r=8,
        alpha=4,
        rank_pattern={r"layers\.1\..*q_proj": 2, "q_proj": 3, "0": 5},
        alpha_pattern={r"mlp\.\d": 1.5, "k_proj": 2},
    )
    found = {target.name: (target.r, target.alpha) for target in find_targets(TiedLM(), config)}
    assert found["layers.0.attn.q_proj"] == (3, 4)
    assert found["layers.1.attn.q_proj"] == (2, 4)
    assert found["layers.0.attn.k_proj"] == (8, 2)
    assert found["layers.0.mlp.0"] == (5, 1.5)
    assert found["layers.1.mlp.2"] == (8, 1.5)


def test_a_pattern_is_one_alternative_even_if_it_holds_several():
    config = LoRAConfig(rank_pattern={"q_proj|v_proj": 2})
    found = {target.name: target.r for target in find_targets(Block(), config)}
    assert found == {"attn.q_proj": 2, "attn.k_proj": 8, "attn.v_proj": 2, "mlp.0": 8, "mlp.2": 8}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"^mlp\.0", {"mlp.0"}),
        (r"^q_proj", set()),
        (r"(?i)Q_PROJ", {"attn.q_proj"}),
        (r".*_proj", {"attn.q_proj", "attn.k_proj", "attn.v_proj"}),
        (r"(q|k)_proj", {"attn.q_proj", "attn.k_proj"}),
    ],
)
def test_a_pattern_may_be_any_expression_and_its_start_is_the_names_own(pattern, expected):
    config = LoRAConfig(rank_pattern={pattern: 2, "mlp.2": 3})
    if not expected:
        with pytest.raises(ValueError, match="must match a layer that gets LoRA"):
            find_targets(Block(), config)
        return
    assert {target.name for target in find_targets(Block(), config) if target.r == 2} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_prj"]}, r"target_modules: 'q_prj' must .*near names: 'q_proj'"),
        ({"target_modules": ["q_proj", "o_projection"]}, r"'o_projection' must match a module"),
        ({"target_modules": ["attn.qproj"]}, r"near names: 'attn.q_proj'"),
        ({"target_modules": "q_proj"}, r"a list matches the ends of names\); near names: 'q_proj'"),
        ({"target_modules": r".*\.q_prj"}, r"near names: 'q_proj'"),
        ({"target_modules": ["zzz"]}, r"there are: 'q_proj', 'k_proj', 'v_proj', '0', '2', 'lm_head'"),
        ({"target_modules": ["all-linear"]}, r"'all-linear' must match a module; it matches none"),
        ({"exclude_modules": ["lm_haed"]}, r"exclude_modules: 'lm_haed' must .*near names: 'lm_head'"),
        (
            {"rank_pattern": {"q_prj": 2}},
            r"rank_pattern: 'q_prj' must match a layer that gets LoRA.*'q_proj'",
        ),
        ({"target_modules": ["q_proj"], "rank_pattern": {"k_proj": 2}}, r"rank_pattern: 'k_proj' must match"),
        ({"rank_pattern": {"proj": 2}}, r"rank_pattern: 'proj' must match a layer that gets LoRA"),
        ({"alpha_pattern": {"q_prj": 2}}, r"alpha_pattern: 'q_prj' must match"),
    ],
)
def test_a_pattern_that_matches_nothing_lists_near_names(options, message):
    with pytest.raises(ValueError, match=message):
        names(TiedLM(), **options)


def test_a_long_list_of_names_is_cut():
    phrase = near_names("zzz", [f"layer_{i}" for i in range(100)])
    assert phrase.endswith("'layer_7' and 92 more")


@pytest.mark.parametrize(
    ("target_modules", "message"),
    [
        (["mlp"], r"target 'mlp' must be exactly an nn.Linear; got Sequential"),
        (["norm"], r"target 'norm' must be exactly an nn.Linear; got LayerNorm"),
        (".*", r"target '' must be exactly an nn.Linear; got Block"),
    ],
)
def test_naming_what_is_not_a_linear_layer_is_an_error(target_modules, message):
    with pytest.raises(TypeError, match=message):
        names(Block(), target_modules=target_modules)


def test_naming_a_subclass_of_linear_is_an_error():
    with pytest.raises(TypeError, match=r"'out_proj' must be .*got NonDynamicallyQuantizableLinear"):
        names(nn.MultiheadAttention(4, 2), target_modules=["out_proj"])


def test_naming_a_layer_that_has_lora_is_an_error():
    model = apply_lora(mlp(), LoRAConfig(target_modules=["0"]))
    with pytest.raises(ValueError, match=r"must name layers without LoRA; '0' has it already"):
        names(model, target_modules=["0", "2"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nn.ReLU, r"it found none$"),
        (lambda: nn.MultiheadAttention(4, 2), r"it found none \(left out: of a subclass: 'out_proj'\)"),
        (lambda: apply_lora(mlp(), LoRAConfig()), r"with LoRA already: '0', '2'"),
    ],
)
def test_all_linear_that_finds_nothing_says_what_it_left_out(make, message):
    with pytest.raises(ValueError, match=message):
        names(make())


def test_excluding_all_that_was_named_is_an_error():
    with pytest.raises(ValueError, match=r"exclude_modules=\('q_proj',\) leaves none of target_modules"):
        names(Block(), target_modules=["q_proj"], exclude_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"left out: excluded: '0', '2'"):
        names(mlp(), exclude_modules=["0", "2"])
