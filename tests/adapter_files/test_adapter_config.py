"""adapter_config.json: what is written, what is read, and what is refused by its key."""

import json

import pytest

from fastlora import AdapterError
from fastlora.adapter_files.adapter_config import AdapterConfig

PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}


def loads(**values):
    return AdapterConfig.loads(json.dumps({**PLAIN, **values}))


def test_what_is_written_is_read():
    config = AdapterConfig(
        r=4,
        alpha=2.5,
        dropout=0.25,
        rslora=True,
        init="gaussian",
        rank_pattern={"q_proj": 2},
        alpha_pattern={"^v": 0.5},
        modules_to_save=("score",),
    )
    assert AdapterConfig.loads(config.dumps(target_modules=["q_proj", "v"])) == config


def test_every_key_that_peft_writes_is_written_and_only_those():
    peft = pytest.importorskip("peft")
    written = json.loads(AdapterConfig(r=4, alpha=8).dumps(target_modules=["q"]))
    theirs = {**peft.LoraConfig(r=4, target_modules=["q"], inference_mode=True).to_dict()}
    theirs["target_modules"] = list(theirs["target_modules"])
    theirs["peft_version"] = written["peft_version"]
    theirs.pop("runtime_config", None)
    assert written == theirs


def test_peft_itself_takes_what_is_written(tmp_path):
    peft = pytest.importorskip("peft")
    text = AdapterConfig(r=4, alpha=2.5, rank_pattern={"v": 2}).dumps(
        target_modules=["q", "v"], task_type="CAUSAL_LM"
    )
    (tmp_path / "adapter_config.json").write_text(text)
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.rank_pattern) == (4, 2.5, {"v": 2})
    assert config.target_modules == {"q", "v"}


def test_numbers_that_are_whole_are_written_without_a_point():
    assert '"lora_alpha": 16,' in AdapterConfig(r=8, alpha=16.0).dumps()
    assert '"lora_alpha": 0.5,' in AdapterConfig(r=8, alpha=0.5).dumps()


def test_keys_left_out_mean_pefts_defaults():
    config = AdapterConfig.loads('{"peft_type": "LORA"}')
    assert config == AdapterConfig(r=8, alpha=8)


@pytest.mark.parametrize(
    ("patterns", "layer", "expected"),
    [
        ({"q_proj": 4}, "layers.0.q_proj", 4),
        ({"q_proj": 4}, "layers.0.xq_proj", 2),
        ({"^q_proj": 4}, "layers.0.q_proj", 2),
        ({r"layers\.[01]\..*": 4}, "model.layers.1.mlp.up", 4),
        ({"q_proj": 4, r"layers\.0\.q_proj": 5}, "layers.0.q_proj", 4),
        ({"q_proj|v_proj": 4}, "layers.0.v_proj", 4),
    ],
)
def test_patterns_choose_as_peft_chooses(patterns, layer, expected):
    config = loads(rank_pattern=patterns, alpha_pattern={key: float(r) for key, r in patterns.items()})
    assert config.rank(layer) == expected
    assert config.alpha_of(layer) == (expected if expected != 2 else 3)
    other = pytest.importorskip("peft.utils.other")
    assert patterns.get(other.get_pattern_key(patterns.keys(), layer), 2) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"base_model_name_or_path": "a/b", "task_type": "CAUSAL_LM", "revision": "main"},
        {"auto_mapping": {"base_model_class": "Net", "parent_library": "x"}, "inference_mode": False},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers", "exclude_modules": ["q"]},
        {"target_modules": "all-linear"},
        {"fan_in_fan_out": True},
        {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"},
        {"peft_version": "0.99.0", "a_switch_of_tomorrow": False, "a_table_of_tomorrow": {}},
        *({"init_lora_weights": init} for init in (True, False, "gaussian", "eva", "orthogonal")),
    ],
)
def test_what_does_not_bear_on_a_trained_adapter_is_read_over(values):
    config = loads(**values)
    assert (config.r, config.alpha) == (2, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "ADALORA"),
        ("peft_type", None),
        ("bias", "boft_only"),
        ("use_qalora", True),
        ("layer_replication", [[0, 4]]),
        ("alora_invocation_tokens", [1]),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1.0}),
        ("velora_config", {"num_groups": 2}),
        ("monteclora_config", {"samples": 2}),
        ("use_bdlora", {"nblocks": 2}),
        ("megatron_config", {"x": 1}),
        ("a_switch_of_tomorrow", True),
        ("a_number_of_tomorrow", 0.5),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", 1),
        ("init_lora_weights", None),
        ("init_lora_weights", ["gaussian"]),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_its_key(key, value):
    with pytest.raises(AdapterError, match=rf"^(adapter_config.json: )?{key} (must be|is not supported)"):
        loads(**{key: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("r", 0, "r must be an int >= 1; got 0"),
        ("r", "2", "r must be an int >= 1; got '2'"),
        ("r", None, "r must be an int >= 1; got None"),
        ("r", True, "r must be an int >= 1; got True"),
        ("lora_alpha", None, "lora_alpha must be a finite number; got None"),
        ("lora_alpha", float("nan"), "lora_alpha must be a finite number"),
        ("lora_alpha", 10**400, "lora_alpha must be a finite number"),
        ("lora_dropout", 1.5, "dropout must be a probability"),
        ("use_rslora", 1, "use_rslora must be True or False; got 1"),
        ("rank_pattern", [1], r"rank_pattern must be an object; got \[1\]"),
        ("rank_pattern", {"q": 0}, r"rank_pattern\['q'\] must be an int >= 1; got 0"),
        (
            "rank_pattern",
            {"(": 1},
            r"rank_pattern must have regular expressions as keys, .*; '\(' has a group that is not",
        ),
        ("alpha_pattern", {"q": "2"}, r"alpha_pattern\['q'\] must be a finite number"),
        ("alpha_pattern", {"q": None}, r"alpha_pattern\['q'\] must be a finite number; got None"),
        ("modules_to_save", "score", "modules_to_save must be a list of names; got 'score'"),
        ("modules_to_save", [""], r"modules_to_save must be a list of names; got \[''\]"),
        ("modules_to_save", [3], r"modules_to_save must be a list of names; got \[3\]"),
    ],
)
def test_an_unsound_value_is_named(key, value, message):
    with pytest.raises(AdapterError, match=rf"^adapter_config.json: {message}"):
        loads(**{key: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSONDecodeError"),
        ("[[", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        ('{"r": ' + "9" * 5000 + "}", "ValueError"),
        (b"\xff\xfe\x00", "UnicodeDecodeError|JSONDecodeError"),
        ("null", "must hold an object; it holds a NoneType"),
        ("[]", "must hold an object; it holds a list"),
        ("{}", "peft_type must be 'LORA'; got None"),
    ],
)
def test_text_that_is_no_config_is_refused(text, message):
    with pytest.raises(AdapterError, match=message):
        AdapterConfig.loads(text)


def test_a_long_value_is_shown_in_part():
    with pytest.raises(AdapterError) as caught:
        loads(use_qalora="x" * 10_000)
    assert len(str(caught.value)) < 300
