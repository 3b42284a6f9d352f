"""LoRAConfig: every value is checked when it is made."""

import copy
import dataclasses
import math
import pickle
from fractions import Fraction

import pytest
import torch

from fastlora import LoRAConfig
from fastlora.arguments import scaling


def test_the_defaults_are_rank_8_on_all_linear_layers():
    config = LoRAConfig()
    assert (config.r, config.alpha, config.dropout, config.target_modules) == (8, None, 0.0, "all-linear")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"r": 0}, ValueError, r"r must be an int >= 1; got 0"),
        ({"r": -3}, ValueError, r"r must be an int >= 1; got -3"),
        ({"r": 8.0}, TypeError, r"r must be an int >= 1; got 8.0"),
        ({"r": True}, TypeError, r"r must be an int >= 1; got True"),
        ({"r": "8"}, TypeError, r"r must be an int >= 1; got '8'"),
        ({"alpha": math.nan}, ValueError, r"alpha must be a finite number.*got nan"),
        ({"alpha": math.inf}, ValueError, r"alpha must be a finite number.*got inf"),
        ({"alpha": 10**400}, ValueError, r"alpha must be a finite number"),
        ({"alpha": "16"}, TypeError, r"alpha must be a finite number.*got '16'"),
        ({"alpha": True}, TypeError, r"alpha must be a finite number.*got True"),
        ({"dropout": 1}, ValueError, r"dropout must be a probability in \[0, 1\); got 1"),
        ({"dropout": -0.1}, ValueError, r"dropout must be a probability in \[0, 1\); got -0.1"),
        ({"dropout": math.nan}, ValueError, r"dropout must be a probability in \[0, 1\); got nan"),
        ({"dropout": None}, TypeError, r"dropout must be a probability in \[0, 1\); got None"),
        ({"rslora": 1}, TypeError, r"rslora must be True or False; got 1"),
        ({"init": "svd"}, ValueError, r"init must be one of gaussian, kaiming, orthogonal; got 'svd'"),
        ({"init": None}, ValueError, r"init must be one of gaussian, kaiming, orthogonal; got None"),
        ({"adapter_dtype": torch.int8}, TypeError, r"adapter_dtype must be torch.float16, .*got torch.int8"),
        (
            {"adapter_dtype": torch.float8_e4m3fn},
            TypeError,
            r"adapter_dtype must be .*got torch.float8_e4m3fn",
        ),
        ({"adapter_dtype": "bf16"}, TypeError, r"adapter_dtype must be .*got 'bf16'"),
        ({"adapter_dtype": "int8"}, TypeError, r"adapter_dtype must be .*got 'int8'"),
        ({"target_modules": []}, ValueError, r"target_modules must hold at least one name"),
        ({"target_modules": ["fc", ""]}, ValueError, r"target_modules must hold .* no empty one"),
        ({"target_modules": ""}, ValueError, r"target_modules must not be empty"),
        ({"target_modules": "(fc"}, ValueError, r"target_modules must be a regular expression; got '\(fc'"),
        ({"target_modules": 3}, TypeError, r"target_modules must be .* a sequence of names; got 3"),
        ({"target_parameters": "down_proj"}, TypeError, r"target_parameters must be a sequence of names"),
        ({"target_parameters": []}, ValueError, r"target_parameters must hold at least one name"),
        (
            {"target_parameters": ["down_proj"], "layers_to_transform": 1},
            ValueError,
            r"layers_to_transform goes with target_modules alone",
        ),
        ({"target_modules": [torch.nn.Linear]}, TypeError, r"target_modules must be .* a sequence of names"),
        ({"exclude_modules": "*"}, ValueError, r"exclude_modules must be a regular expression; got '\*'"),
        ({"exclude_modules": []}, ValueError, r"exclude_modules must hold at least one name"),
        ({"rank_pattern": {"fc": 0}}, ValueError, r"rank_pattern\['fc'\] must be an int >= 1; got 0"),
        ({"rank_pattern": {"fc[": 2}}, ValueError, r"rank_pattern key must be a regular expression"),
        ({"rank_pattern": [("fc", 2)]}, TypeError, r"rank_pattern must map names"),
        ({"alpha_pattern": {"fc": math.inf}}, ValueError, r"alpha_pattern\['fc'\] must be a finite number"),
        ({"alpha_pattern": {"fc": None}}, TypeError, r"alpha_pattern\['fc'\] must be a finite number"),
        ({"alpha_pattern": {1: 2.0}}, TypeError, r"alpha_pattern must map names"),
    ],
)
def test_an_unsound_value_is_named_with_what_would_be_right(options, error, message):
    with pytest.raises(error, match=message):
        LoRAConfig(**options)


def test_fields_are_keywords_and_cannot_be_changed():
    with pytest.raises(TypeError):
        LoRAConfig(8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        LoRAConfig().r = 4


def test_changing_what_was_passed_in_does_not_change_the_config():
    names, ranks = ["q_proj"], {"q_proj": 4}
    config = LoRAConfig(target_modules=names, rank_pattern=ranks)
    names.append("k_proj")
    ranks["q_proj"] = 0
    assert config.target_modules == ("q_proj",)
    assert config.rank_pattern == {"q_proj": 4}


def test_a_set_of_names_is_taken_in_a_fixed_order():
    assert LoRAConfig(target_modules={"v_proj", "q_proj"}).target_modules == ("q_proj", "v_proj")


def test_alpha_left_out_follows_a_replaced_rank():
    assert dataclasses.replace(LoRAConfig(r=8), r=4).alpha is None


def test_configs_compare_hash_copy_and_pickle():
    config = LoRAConfig(target_modules=["fc"], rank_pattern={"fc": 2}, alpha_pattern={"fc": 1.5})
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(copy.deepcopy(config))


def test_rslora_scales_by_the_root_of_the_rank():
    assert scaling(16, 8.0, rslora=False) == 0.5
    assert scaling(16, 8.0, rslora=True) == 2.0


def test_a_number_of_another_kind_is_refused_rather_than_guessed():
    with pytest.raises(TypeError, match=r"alpha must be a finite number"):
        LoRAConfig(alpha=Fraction(1, 3))
