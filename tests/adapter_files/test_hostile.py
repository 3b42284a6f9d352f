"""Adapters that are made to hang a load: each is refused, or read, at once."""

import faulthandler
import json
from contextlib import suppress

import pytest
import torch

from fastlora import AdapterError, hot_swap, load_adapter, load_pretrained, save_pretrained
from fastlora.adapter_files.adapter_config import AdapterConfig
from fastlora.adapter_files.layout import serialized
from fastlora.adapter_files.patterns import Patterns
from tests.models import adapted, mlp

LAYERS = [f"model.layers.{i}.self_attn.{letter}_proj" for i in range(32) for letter in "qkvo"]
# What Python's own matcher would take a lifetime for, and what it would not take at all.
HOSTILE = {
    "many choices and repeats": ["(.?)" * 8 + f".*.*.*X{i}" for i in range(100)],
    "nested quantifiers": ["(a+)+" * 30 + "b", "(.*)*X", "((.*)*)*X", "(.+)+(.+)+X"],
    "alternations": ["(.|..|...)*" * 10 + f"X{i}" for i in range(50)],
    "one alternation of many": ["(" + "|".join(["."] * 200) + ")*X"],
    "backreferences": [r"(.*)\1*X", r"(?P<x>.*)(?P=x)X"],
    "lookarounds": ["(?=.*.*.*X).*", "(?<!a).*X", "(?!.*)*"],
    "possessive": [".*+X", "(?>.*)*X", ".{1,999}+"],
    "counted": ["((((.{9}){9}){9}){9})X", ".{0,999999}X", "(.?){200}X", "x{999}{999}"],
    "flags": ["(?i).*X", "(?s:.*)*X"],
    "long literals": ["a" * 600, "[" * 500, "(" * 500, "\\" * 501],
    "very many names": [f"layers.{i}.x" for i in range(100_000)],
    "very many wild names": ["." * (i % 50) + f"x{i}" for i in range(100_000)],
    "very many expressions": [f".*{i}" for i in range(100_000)],
}


@pytest.fixture(autouse=True)
def no_hanging():
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("expressions", HOSTILE.values(), ids=HOSTILE.keys())
def test_patterns_that_could_take_forever_do_not(expressions):
    with suppress(ValueError):
        patterns = Patterns("rank_pattern", dict.fromkeys(expressions, 3))
        assert {patterns.find(layer, 2) for layer in LAYERS} <= {2, 3}


def hostile(directory, **config):
    save_pretrained(adapted(mlp()), directory)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return directory


def test_a_hostile_pattern_in_either_form_is_an_error_that_names_it(tmp_path):
    patterns = dict.fromkeys(HOSTILE["backreferences"], 2)
    hostile(tmp_path, rank_pattern=patterns)
    config = (tmp_path / "adapter_config.json").read_text()
    tensors = {
        "base_model.model.0.lora_A.weight": torch.ones(2, 6),
        "base_model.model.0.lora_B.weight": torch.ones(5, 2),
    }
    (tmp_path / "one").write_bytes(serialized(tensors, {"adapter_config": config}))
    for load, path in ((load_pretrained, tmp_path), (load_adapter, tmp_path / "one"), (hot_swap, tmp_path)):
        with pytest.raises(AdapterError, match="rank_pattern must have regular expressions"):
            load(adapted(mlp()), path)


def test_names_are_compared_with_the_model_before_a_pattern_is_matched(tmp_path, monkeypatch):
    tensors = {f"base_model.model.{'a.' * 99}x.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    config = AdapterConfig(r=2, alpha=2, rank_pattern={"(.*)*X": 3}).dumps()
    (tmp_path / "one").write_bytes(serialized(tensors, {"adapter_config": config}))

    def fail(*args):
        raise AssertionError("a pattern was matched")

    monkeypatch.setattr(Patterns, "find", fail)
    for model in (mlp(), adapted(mlp())):
        with pytest.raises(AdapterError, match=r"its layers must be the model's|it lacks '0'"):
            load_adapter(model, tmp_path / "one")


def test_both_forms_have_one_limit_of_the_configs_size(tmp_path):
    text = AdapterConfig(r=2, alpha=2).dumps(target_modules=["x" * (5 << 20)])
    tensors = {f"base_model.model.0.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    (tmp_path / "one").write_bytes(serialized(tensors, {"adapter_config": text}))
    (tmp_path / "adapter_config.json").write_text(text)
    (tmp_path / "adapter_model.safetensors").write_bytes(serialized(tensors, {}))
    for load, path in ((load_adapter, tmp_path / "one"), (load_pretrained, tmp_path)):
        with pytest.raises(AdapterError, match="must be at most 4,194,304 bytes"):
            load(mlp(), path)


def test_very_many_modules_to_save_are_refused(tmp_path):
    with pytest.raises(AdapterError, match="modules_to_save must have at most 1,000 names; got 100,000"):
        load_pretrained(mlp(), hostile(tmp_path, modules_to_save=[f"m{i}" for i in range(100_000)]))


def test_a_pattern_for_each_layer_of_a_large_model_is_read():
    layers = [f"model.layers.{i}.mlp.experts.{j}.up" for i in range(40) for j in range(40)]
    patterns = Patterns("rank_pattern", {layer: i for i, layer in enumerate(layers)})
    assert [patterns.find(layer, -1) for layer in layers] == list(range(len(layers)))


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({"x" * 5_000: 1}, {}),
        ({"bias": "\x1b[2J" * 500}, {}),
        ({"rank_pattern": {"(" * 400: 2}}, {}),
        ({"rank_pattern": {"x" * 50_000: "y" * 50_000}}, {}),
        ({"modules_to_save": ["z" * 5_000]}, {"z" * 200: 1}),
        ({}, {"\x1b[2J\n" * 40: 1}),
        ({}, {"n" * 50_000: 1}),
        ({}, {f"{'very_long' * 20}.{i}.lora_{x}.weight": 1 for i in range(99) for x in "AB"}),
    ],
)
def test_an_error_is_short_and_safe_to_print(tmp_path, config, tensors):
    hostile(tmp_path, **config)
    held = {f"base_model.model.{key}": torch.ones(2, 2) for key in tensors}
    if held:
        (tmp_path / "adapter_model.safetensors").write_bytes(serialized(held, {}))
    with pytest.raises(AdapterError) as caught:
        load_pretrained(mlp(), tmp_path)
    assert len(str(caught.value)) <= 1_000
    assert str(caught.value).isprintable()


def test_the_end_of_a_long_error_says_what_to_do_and_its_beginning_what_was_wrong():
    said = str(AdapterError("must be short; got " + "x" * 5_000 + "\x1b[2J (save it again)"))
    assert said.startswith("must be short; got x")
    assert said.endswith("\\x1b[2J (save it again)")
    assert len(said) <= 1_000


def test_all_patterns_together_have_so_many_steps():
    expressions = [f"{'(.|..|...)*' * 10}X{i}" for i in range(100)]
    with pytest.raises(ValueError, match=r"rank_pattern.* take too long to match"):
        Patterns("rank_pattern", dict.fromkeys(expressions, 3)).find(LAYERS[0], 2)
