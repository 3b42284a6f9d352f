"""Counting parameters."""

import pytest
from torch import nn

from fastlora import LoRAConfig, apply_lora, merge_lora, parameter_report, remove_lora, unfreeze
from tests.models import Shared, TiedLM


def digits_net():
    return nn.Sequential(
        nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 2000), nn.ReLU(), nn.Linear(2000, 10)
    )


def test_the_counts_of_the_digits_net_at_rank_one():
    report = parameter_report(apply_lora(digits_net(), LoRAConfig(r=1)))
    assert (report.base, report.lora, report.total) == (2_807_010, 6_794, 2_813_804)
    assert report.trainable == report.lora
    assert report.percent == pytest.approx(100 * 6_794 / 2_813_804)
    assert report.percent_of_base == pytest.approx(100 * 6_794 / 2_807_010)
    assert [(layer.name, layer.base, layer.lora) for layer in report.layers] == [
        ("0", 785_000, 1_784),
        ("2", 2_002_000, 3_000),
        ("4", 20_010, 2_010),
    ]


def test_it_prints_as_a_table():
    assert str(parameter_report(apply_lora(digits_net(), LoRAConfig(r=1)))) == (
        "layer         shape  r       base   LoRA\n"
        "----------------------------------------\n"
        "0       784 -> 1000  1    785,000  1,784\n"
        "2      1000 -> 2000  1  2,002,000  3,000\n"
        "4        2000 -> 10  1     20,010  2,010\n"
        "2,807,010 base + 6,794 LoRA = 2,813,804 parameters\n"
        "LoRA is 0.242% of the base\n"
        "6,794 trainable, 0.241% of the total"
    )


def test_a_model_without_lora_has_all_in_the_base():
    report = parameter_report(digits_net())
    assert (report.base, report.lora, report.trainable, report.layers) == (2_807_010, 0, 2_807_010, ())
    assert report.percent == 100
    assert str(report).startswith("2,807,010 base + 0 LoRA")


def test_a_model_without_parameters_is_not_divided_by():
    report = parameter_report(nn.ReLU())
    assert (report.total, report.percent, report.percent_of_base) == (0, 0, 0)


@pytest.mark.parametrize("make", [TiedLM, Shared])
def test_shared_parameters_and_modules_are_counted_once(make):
    model = make()
    base = sum(parameter.numel() for parameter in model.parameters())
    report = parameter_report(apply_lora(model, LoRAConfig(r=2)))
    assert report.base == base
    assert report.lora == sum(layer.lora for layer in report.layers)


def test_merging_changes_no_count_and_removing_takes_loras_away():
    model = apply_lora(digits_net(), LoRAConfig(r=1))
    report = parameter_report(model)
    merge_lora(model)
    assert parameter_report(model) == report
    remove_lora(model)
    assert parameter_report(model).total == report.base


def test_unfrozen_parameters_count_as_trainable():
    model = apply_lora(TiedLM(), LoRAConfig(r=2))
    unfreeze(model)
    embedding_and_norms = 7 * 4 + 2 * 2 * 4
    report = parameter_report(model)
    assert report.trainable == report.lora + embedding_and_norms


def test_a_single_layer_is_a_model_too():
    report = parameter_report(apply_lora(nn.Linear(4, 3, bias=False), LoRAConfig(r=2)))
    assert "(the model)  4 -> 3  2    12    14" in str(report)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be an nn.Module; got dict"):
        parameter_report({})
