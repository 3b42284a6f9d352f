"""Adapters on the hub: a stub of it on loopback, and huggingface_hub's own cache."""

import copy
import logging
import sys

import pytest
import torch
from torch import nn

from fastlora import (
    AdapterError,
    LoRAConfig,
    add_adapter,
    from_pretrained,
    push_to_hub,
    save_pretrained,
    set_adapter,
)
from tests.adapter_files import hub_server
from tests.models import adapted, mlp

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
errors = pytest.importorskip("huggingface_hub.errors")

TOKEN = "hf_" + "aSecretThatMustNotLeak"
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        for name in ("HF_HUB_CACHE", "HF_XET_CACHE"):
            monkeypatch.setattr(constants, name, str(tmp_path / "home" / name), raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def base():
    return mlp()


def test_what_is_pushed_is_pulled(hub, base):
    model = adapted(copy.deepcopy(base))
    address = push_to_hub(model, "someone/adapter", token=TOKEN, base_model_name_or_path="someone/mlp")
    assert address == f"{hub.url}/someone/adapter/commit/{hub.sha('someone/adapter')}"
    assert hub.repositories["someone/adapter"].keys() == FILES
    loaded = from_pretrained(copy.deepcopy(base), "someone/adapter", token=TOKEN)
    x = torch.randn(4, 6)
    assert torch.equal(loaded(x), model(x))


def test_the_card_names_the_base_model_and_is_written_once(hub, base):
    model = adapted(base)
    push_to_hub(model, "someone/adapter", token=TOKEN, base_model_name_or_path='a"b: c')
    card = hub.repositories["someone/adapter"]["README.md"].decode()
    data = huggingface_hub.ModelCard(card).data
    assert (data.base_model, data.library_name) == ('a"b: c', "peft")
    hub.repositories["someone/adapter"]["README.md"] = b"mine"
    push_to_hub(model, "someone/adapter", token=TOKEN)
    assert hub.repositories["someone/adapter"]["README.md"] == b"mine"


def test_a_named_adapter_is_pulled_from_its_subfolder(hub, base):
    model = add_adapter(adapted(copy.deepcopy(base)), "fr", LoRAConfig(r=3))
    set_adapter(model, "fr")
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.lora_B)
    push_to_hub(model, "someone/adapter", adapters=["fr"], token=TOKEN)
    assert hub.repositories["someone/adapter"].keys() == {
        "README.md",
        "fr/adapter_config.json",
        "fr/adapter_model.safetensors",
    }
    loaded = from_pretrained(copy.deepcopy(base), "someone/adapter", subfolder="fr", token=TOKEN)
    x = torch.randn(4, 6)
    assert torch.equal(loaded(x), model(x))


def test_the_local_cache_is_enough_once_it_was_pulled(hub, base):
    model = adapted(copy.deepcopy(base))
    push_to_hub(model, "someone/adapter", token=TOKEN)
    from_pretrained(copy.deepcopy(base), "someone/adapter", token=False)
    asked = len(hub.requests)
    loaded = from_pretrained(copy.deepcopy(base), "someone/adapter", local_files_only=True)
    assert len(hub.requests) == asked
    x = torch.randn(4, 6)
    assert torch.equal(loaded(x), model(x))


def test_only_the_adapters_two_files_are_downloaded(hub, base):
    push_to_hub(adapted(copy.deepcopy(base)), "someone/adapter", token=TOKEN)
    hub.repositories["someone/adapter"] |= {"adapter_model.bin": b"\x80\x04", "run.py": b"evil"}
    hub.requests.clear()
    from_pretrained(base, "someone/adapter", token=TOKEN)
    fetched = {path.rsplit("/", 1)[1] for _, path, _ in hub.requests if "/resolve/" in path}
    assert fetched == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_token_goes_to_the_hub_and_nowhere_else(hub, base, tmp_path, capfd, caplog):
    model = adapted(copy.deepcopy(base))
    with caplog.at_level(logging.DEBUG):
        push_to_hub(model, "someone/adapter", token=TOKEN)
        loaded = from_pretrained(copy.deepcopy(base), "someone/adapter", token=TOKEN)
        with pytest.raises(errors.RepositoryNotFoundError) as missing:
            from_pretrained(copy.deepcopy(base), "someone/nothing", token=TOKEN)
    assert all(headers.get("authorization") == f"Bearer {TOKEN}" for _, _, headers in hub.requests)
    shown = capfd.readouterr()
    assert TOKEN not in shown.out + shown.err + caplog.text + str(missing.value) + repr(loaded)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    pushed = hub.repositories["someone/adapter"].values()
    assert not any(TOKEN.encode() in content for content in (*written, *pushed))


def test_a_damaged_adapter_from_the_hub_changes_nothing(hub, base):
    push_to_hub(adapted(copy.deepcopy(base)), "someone/adapter", token=TOKEN)
    hub.repositories["someone/adapter"]["adapter_model.safetensors"] += b"\0"
    modules = list(base.modules())
    with pytest.raises(AdapterError, match="must be a whole safetensors file"):
        from_pretrained(base, "someone/adapter", token=TOKEN)
    assert list(base.modules()) == modules


def test_a_repository_without_an_adapter_says_what_is_missing(hub, base):
    hub.repositories["someone/else"] = {"README.md": b""}
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json"):
        from_pretrained(base, "someone/else", token=TOKEN)


@pytest.mark.parametrize("subfolder", ["../up", "/etc", "a/../../b"])
def test_a_subfolder_outside_the_repository_is_refused(base, subfolder):
    with pytest.raises(ValueError, match="subfolder must lie in the repository"):
        from_pretrained(base, "someone/adapter", subfolder=subfolder)


def test_without_huggingface_hub_the_error_names_the_extra(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (push_to_hub, from_pretrained):
        with pytest.raises(ImportError, match=r'needs huggingface_hub: pip install "fastlora-triton\[hub\]"'):
            use(base, "someone/adapter")


def test_a_folder_on_this_machine_is_read_and_the_hub_is_not_asked(hub, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = adapted(copy.deepcopy(base))
    save_pretrained(model, "someone/adapter")
    save_pretrained(model, "a/local/folder/inside")
    x = torch.randn(4, 6)
    for where in (
        {"repo_id": "someone/adapter"},
        {"repo_id": "a/local/folder", "subfolder": "inside"},
        {"repo_id": tmp_path / "a/local/folder/inside"},
        {"repo_id": "./someone/adapter/"},
    ):
        assert torch.equal(from_pretrained(copy.deepcopy(base), **where)(x), model(x))
    assert not hub.requests


@pytest.mark.parametrize("path", ["./nope", "../nope", "~/nope", "/nope", "a/local/nope", "a\\nope", "."])
def test_a_path_to_nothing_is_said_and_the_hub_is_not_asked(hub, base, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = "adapter_config.json" if path == "." else "repo_id must be 'user/name' on the hub, or a folder"
    with pytest.raises(FileNotFoundError, match=message):
        from_pretrained(base, path)
    assert not hub.requests


def test_a_single_file_for_a_repository_names_load_adapter(hub, base, tmp_path):
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(NotADirectoryError, match="load_adapter"):
        from_pretrained(base, tmp_path / "one.safetensors")
