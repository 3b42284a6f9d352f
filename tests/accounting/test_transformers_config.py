"""What a word after `--model` means, and how one that means nothing is answered."""

import json
import socket

import pytest

pytest.importorskip("transformers")

import huggingface_hub

from fastlora import LoRAConfig
from fastlora.accounting.meta_models import BlueprintError, blueprint_budget
from fastlora.accounting.transformers_config import ConfigError, find_config


@pytest.fixture
def no_network(monkeypatch):
    """Every connection fails; returns the hosts that were looked up."""
    asked = []

    def refuse(host, *_, **__):
        asked.append(host)
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nope", r"'nope' is none of them. There are \d+ types, such as llama"),
        ("lama", r"Near it among the \d+ types: llama"),
        ("Llama", r"Near it among the \d+ types: llama"),
        ("", "a name on the hub as \"org/name\"; '' is none"),
        ("x" * 5000, "is none of them"),
        ("/nope.json", "must be a file or folder that exists; there is no '/nope.json'"),
        ("./nope", "there is no './nope'"),
        ("a/b/c", "there is no 'a/b/c'"),
        ("org/nope.json", "there is no 'org/nope.json'"),
        ("/dev/null", "'/dev/null' is no regular file"),
    ],
)
def test_a_word_that_means_nothing_is_answered_at_once(no_network, spec, message):
    with pytest.raises(BlueprintError, match=message) as raised:
        blueprint_budget(spec, LoRAConfig())
    assert len(str(raised.value)) <= 1000
    assert not no_network, "the hub was asked"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON; Expecting property name"),
        ("[1]", "a model_type that it knows; got None"),
        (json.dumps({"model_type": "lama"}), r"got 'lama'. Near it among the \d+ types: llama"),
        (json.dumps({"model_type": "llama", "hidden_size": "x"}), "a sound llama config; .*hidden_size.*'x'"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path, content, message):
    file = tmp_path / "config.json"
    file.write_text(content)
    for spec in (file, tmp_path):
        with pytest.raises(ConfigError, match=message):
            find_config(str(spec))


def test_a_folder_without_a_config_says_what_it_lacks(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        find_config(str(tmp_path))


def test_a_type_and_a_file_of_that_type_mean_the_same_config(tmp_path):
    config = find_config("llama")
    config.save_pretrained(tmp_path)
    for spec in (tmp_path, tmp_path / "config.json"):
        assert find_config(str(spec)).to_diff_dict() | {"architectures": None} == {
            **config.to_diff_dict(),
            "architectures": None,
        }


def test_a_hub_that_cannot_be_reached_is_asked_once_and_said_in_one_line(no_network, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="must be in the hub's cache, as the hub cannot be reached") as raised:
        find_config("org/name")
    assert "\n" not in str(raised.value)
    # One question, beside the list of agents that huggingface_hub 2 fetches; there were 6 in half a minute.
    assert len(no_network) <= 2


def test_a_model_that_takes_no_token_ids_is_refused_in_one_line():
    with pytest.raises(BlueprintError, match="must take token ids, and 8 of them; ") as raised:
        blueprint_budget("t5", LoRAConfig(), tokens=8)
    assert "\n" not in str(raised.value)
