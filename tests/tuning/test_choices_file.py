"""The file of choices is written whole, in its place, and beside what others wrote."""

import os
import threading
import time

import pytest

from fastlora.routes.choices import read_file
from fastlora.tuning import choices_file
from fastlora.tuning.choices_file import add_choices, check_place, write_choices
from tests.tuning.test_choices import PROBLEM, VENDOR, file_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "choices.json"


def _of(*sizes, **metadata):
    return [file_of(problem=PROBLEM._replace(K=K), **metadata) for K in sizes]


def _at_once(write, held):
    threads = [threading.Thread(target=write, args=(one,)) for one in held]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_writers_leave_one_file_whole(path):
    held = _of(96, 128)
    _at_once(lambda one: [write_choices(one, path) for _ in range(10)], held)
    assert read_file(path) in held
    assert [child.name for child in path.parent.iterdir()] == ["choices.json"]


@pytest.mark.skipif(os.name != "posix", reason="no locks of folders")
def test_two_runs_at_once_keep_both_their_choices(path, monkeypatch):
    def slowly(path):
        try:
            return read_file(path)
        finally:
            time.sleep(0.05)  # so that, without a lock, all read before one writes

    monkeypatch.setattr(choices_file, "read_file", slowly)
    held = _of(96, 128, 160)
    _at_once(lambda one: add_choices(one, path), held)
    assert read_file(path).entries == {**held[0].entries, **held[1].entries, **held[2].entries}


def test_newer_choices_win_and_those_of_other_kernels_go(path):
    first, second = _of(96, 128)
    write_choices(first, path)
    add_choices(second, path)
    again = file_of(choice=VENDOR, when="later")
    add_choices(again, path)
    assert read_file(path) == choices_file.Choices(again.metadata, {**second.entries, **again.entries})
    add_choices(_of(160, kernels="others")[0], path)
    assert read_file(path).entries == _of(160)[0].entries


def test_a_write_that_fails_leaves_the_file_before(path, monkeypatch):
    write_choices(file_of(), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_choices(file_of(when="later"), path)
    assert path.read_bytes() == before
    assert [child.name for child in path.parent.iterdir()] == ["choices.json"]


def test_a_link_stays_a_link(path, tmp_path):
    path.symlink_to(tmp_path / "kept" / "here.json")
    check_place(path)
    add_choices(file_of(), path)
    assert path.is_symlink()
    assert read_file(tmp_path / "kept" / "here.json") == file_of()


def identity(path):
    """What tells one file from another; looking at a link moves its time of access."""
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_rdev, found.st_mtime_ns


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_what_is_no_file_is_left_in_its_place(path, kind):
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no pipes with names")
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    before = identity(path)
    for write in (check_place, lambda path: add_choices(file_of(), path)):
        with pytest.raises(OSError, match=r"must be a file|a link to itself"):
            write(path)
    assert identity(path) == before
