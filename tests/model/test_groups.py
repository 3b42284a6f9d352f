"""Which layers are grouped, how it is told, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from fastlora import (
    LoRAConfig,
    add_adapter,
    group_counts,
    group_projections,
    remove_lora,
    ungroup_projections,
)
from fastlora.model.group_names import tuples_for
from tests.models import TiedLM, adapted


def grouped(**options):
    return adapted(TiedLM(), group=True, target_modules=["q_proj", "k_proj", "v_proj", "mlp.0"], **options)


def test_the_config_groups_from_the_start():
    model = grouped()
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    counts = group_counts(model)
    assert (counts.groups, counts.rounds, counts.hits) == (2, 2, 4)
    assert str(counts).startswith("2 groups: computed 2 times, 4 outputs taken")
    with pytest.raises(TypeError, match="group must be True or False"):
        LoRAConfig(group=1)


def test_the_report_is_a_table_with_numbers_as_stars():
    report = group_projections(grouped())
    assert report.grouped[0] == tuple(f"layers.0.attn.{name}_proj" for name in "qkv")
    text = str(report)
    assert "6 of 8 layers are computed in 2 groups" in text
    assert "layers.*.attn  q_proj, k_proj, v_proj       2" in text
    assert "layers.*.mlp.*  no other layer is known to share its x       2" in text
    assert "<table>" in report._repr_html_()


def test_those_of_a_tuple_that_have_lora_are_grouped():
    model = adapted(TiedLM(), target_modules=["q_proj", "v_proj"])
    assert [len(names) for names in group_projections(model).grouped] == [2, 2]
    one = adapted(TiedLM(), target_modules=["q_proj"])
    report = group_projections(one)
    assert not report.grouped
    assert set(report.alone.values()) == {"no other that shares its x has LoRA"}


def test_names_given_by_the_user():
    model = adapted(TiedLM())
    report = group_projections(model, [("attn.k_proj", "attn.q_proj")])
    assert report.grouped[0] == ("layers.0.attn.k_proj", "layers.0.attn.q_proj")
    with pytest.raises(ValueError, match=r"\('a', 'b'\) does not"):
        group_projections(adapted(TiedLM()), [("a", "b")])
    again = [("attn.k_proj", "attn.q_proj"), ("attn.q_proj", "attn.v_proj")]
    assert group_projections(model, again).grouped == report.grouped
    for wrong, error in (
        ("q_proj", TypeError),
        ([], TypeError),
        (["qkv"], TypeError),
        ([("q", 1)], TypeError),
    ):
        with pytest.raises(error, match="groups must"):
            group_projections(model, wrong)
    with pytest.raises(ValueError, match="two different names"):
        group_projections(model, [("q", "q")])
    with pytest.raises(ValueError, match="must have LoRA layers"):
        group_projections(TiedLM())


def test_one_tuple_of_several_that_names_nothing_is_an_error_and_nothing_is_grouped():
    model = adapted(TiedLM())
    with pytest.raises(ValueError, match=r"\('attn.v_proj', 'attn.o_prj'\) does not"):
        group_projections(model, [("attn.q_proj", "attn.k_proj"), ("attn.v_proj", "attn.o_prj")])
    assert group_counts(model).groups == 0


def test_layers_that_do_not_fit_together_are_named():
    net = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "k_proj": nn.Linear(6, 4), "v_proj": nn.Linear(4, 4)})
    report = group_projections(adapted(net))
    assert not report.grouped
    assert set(report.alone.values()) == {"the projections have different sizes of x: 4, 6"}


def test_the_query_of_a_cross_attention_is_given_another_x():
    assert ("k", "v") in tuples_for("decoder.block.0.layer.1.EncDecAttention", None)
    assert ("q", "k", "v") in tuples_for("decoder.block.0.layer.0.SelfAttention", None)
    assert ("to_k", "to_v") in tuples_for("blocks.0.attn2", None)


def test_removed_layers_and_new_ones():
    model = grouped()
    add_adapter(model, "fr", LoRAConfig(target_modules=["mlp.2"], group=True))
    assert group_counts(model).groups == 2
    ungroup_projections(model)
    assert group_counts(model).groups == 0
    group_projections(model)
    plain = remove_lora(copy.deepcopy(model))
    assert not any("_group" in vars(module) for module in plain.modules())
