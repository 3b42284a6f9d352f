"""Writing adapters: all files or none, with what they replace kept as it was, and nothing left behind."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastlora import AdapterError, save_adapter, save_pretrained
from fastlora.adapter_files import drafts
from fastlora.adapter_files.drafts import write_together
from tests.models import adapted, mlp


def leftovers(folder):
    return list(folder.glob(".fastlora-*"))


def test_a_draft_of_a_killed_process_is_gone_after_the_next_save(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".fastlora-{drafts._machine()}-{dead.pid}-1-{'a' * 16}.tmp").touch()
    save_pretrained(adapted(mlp()), tmp_path)
    assert not leftovers(tmp_path)


def test_a_draft_of_a_process_that_may_live_stays(tmp_path):
    mine = tmp_path / drafts._draft_name()
    other_machine = tmp_path / f".fastlora-00000000-1-1-{'a' * 16}.tmp"
    of_old_release = tmp_path / f".fastlora-{'a' * 16}.tmp"
    for draft in (mine, other_machine, of_old_release):
        draft.touch()
    write_together([(tmp_path / "file", b"")])
    assert set(leftovers(tmp_path)) == {mine, other_machine, of_old_release}
    yesterday = time.time() - 25 * 3600
    for draft in (mine, other_machine, of_old_release):
        os.utime(draft, (yesterday, yesterday))
    write_together([(tmp_path / "file", b"")])
    assert leftovers(tmp_path) == [mine]


def test_a_pid_that_another_process_has_by_now_does_not_keep_a_draft(tmp_path):
    if not drafts._started(os.getpid()):
        pytest.skip("the system does not say when a process started")
    (tmp_path / f".fastlora-{drafts._machine()}-{os.getpid()}-1-{'a' * 16}.tmp").touch()
    write_together([(tmp_path / "file", b"")])
    assert not leftovers(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "adapter.safetensors"
    path.touch()
    path.chmod(mode)
    save_adapter(adapted(mlp()), path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.stat().st_size


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_the_draft_of_a_private_file_is_private(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o600)
    seen = []
    monkeypatch.setattr(
        drafts.os,
        "fdopen",
        lambda file, mode, fdopen=os.fdopen: (seen.append(os.fstat(file)), fdopen(file, mode))[1],
    )
    write_together([(path, b"secret")])
    assert [stat.S_IMODE(state.st_mode) & 0o077 for state in seen] == [0]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "store").mkdir()
    link = tmp_path / "adapter.safetensors"
    link.symlink_to(tmp_path / "store" / "real")
    for content in (b"first", b"second"):  # it leads nowhere at first
        write_together([(link, content)])
        assert link.is_symlink()
        assert (tmp_path / "store" / "real").read_bytes() == content
    assert not leftovers(tmp_path) + leftovers(tmp_path / "store")


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_a_link_to_itself_and_what_is_no_file_are_not_replaced(tmp_path):
    loop, fifo = tmp_path / "loop", tmp_path / "fifo"
    loop.symlink_to(loop)
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="a link to itself"):
        write_together([(loop, b"")])
    with pytest.raises(AdapterError, match="must be a regular file; it is a FIFO"):
        write_together([(fifo, b"")])
    with pytest.raises(AdapterError, match="must be a regular file; it is a device"):
        save_adapter(adapted(mlp()), os.devnull)
    assert loop.is_symlink()
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_no_file_is_replaced_where_one_of_several_cannot_be(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(IsADirectoryError):
        write_together([(tmp_path / "a", b"new"), (tmp_path / "b", b"new")])
    assert (tmp_path / "a").read_bytes() == b"old"
    assert not leftovers(tmp_path)


def test_every_draft_is_on_the_disk_before_the_first_rename(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("written"), fsync(file))[1])
    monkeypatch.setattr(Path, "replace", lambda *args: (done.append("renamed"), replace(*args))[1])
    write_together([(tmp_path / name, b"") for name in "abc"])
    assert done[:6] == ["written"] * 3 + ["renamed"] * 3


def test_an_interrupt_between_two_renames_comes_after_the_last(tmp_path, monkeypatch):
    replace, calls = Path.replace, []

    def interrupted(draft, target):
        calls.append(target)
        replace(draft, target)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_together([(tmp_path / name, b"new") for name in "ab"])
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"new"] * 2
    assert not leftovers(tmp_path)


def test_a_directory_that_another_program_has_locked_is_written_all_the_same(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(drafts, "_LOCK_SECONDS", 0.02)
    holder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        write_together([(tmp_path / "file", b"new")])
    finally:
        os.close(holder)
    assert (tmp_path / "file").read_bytes() == b"new"
