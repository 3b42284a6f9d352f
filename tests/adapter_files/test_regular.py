"""What is no regular file is refused at once, wherever a file of an adapter is expected."""

import faulthandler
import os
import shutil
import socket

import pytest

from fastlora import AdapterError, hot_swap, load_adapter, load_pretrained, save_adapter, save_pretrained
from fastlora.adapter_files import regular
from tests.models import adapted, mlp

pytestmark = pytest.mark.skipif(os.name != "posix", reason="FIFOs and sockets of POSIX")


@pytest.fixture(autouse=True)
def no_hanging():
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def fifo(path):
    os.mkfifo(path)


def listening(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def device(path):
    path.symlink_to(os.devnull)


@pytest.mark.parametrize(("make", "kind"), [(fifo, "a FIFO"), (listening, "a socket"), (device, "a device")])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter.safetensors"])
def test_a_file_of_another_kind_is_refused(tmp_path, monkeypatch, name, make, kind):
    model = adapted(mlp())
    save_pretrained(model, tmp_path)
    save_adapter(model, tmp_path / "adapter.safetensors")
    (tmp_path / name).unlink()
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(tmp_path.joinpath(name).relative_to(tmp_path))
    uses = (
        [(load_adapter, name)] if name == "adapter.safetensors" else [(load_pretrained, "."), (hot_swap, ".")]
    )
    for load, path in uses:
        with pytest.raises(AdapterError, match=rf"{name}: must be a regular file; it is {kind}"):
            load(model, path)


def test_a_fifo_that_takes_a_files_place_between_the_checks_is_refused_too(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(
        regular, "check_regular", lambda path, mode, check=regular.check_regular: seen(path, mode, check)
    )
    calls = []

    def seen(path, mode, check):
        calls.append(mode)
        if len(calls) > 1:
            check(path, mode)

    with pytest.raises(AdapterError, match="it is a FIFO"):
        regular.open_regular(tmp_path / "fifo")
    assert len(calls) == 2


def test_a_link_to_a_regular_file_is_one(tmp_path):
    model = adapted(mlp())
    save_pretrained(model, tmp_path / "real")
    (tmp_path / "links").mkdir()
    for path in (tmp_path / "real").iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    load_pretrained(model, tmp_path / "links")
    shutil.rmtree(tmp_path / "real")
    with pytest.raises(FileNotFoundError):
        load_pretrained(model, tmp_path / "links")
