"""The two files of a directory: a load has both of one save, or says that they are not."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fastlora import (
    AdapterError,
    LoRAConfig,
    apply_lora,
    load_adapter,
    load_pretrained,
    save_adapter,
    save_pretrained,
)
from fastlora.adapter_files import drafts, opening
from tests.models import mlp

ROOT = Path(__file__).parents[2]
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def made(alpha):
    """A model whose alpha tells of its B: both are the same number."""
    model = apply_lora(mlp(), LoRAConfig(r=2, alpha=alpha))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.lora_B.fill_(alpha)
    return model


def numbers(model):
    return model[0].alpha, model[0].lora_B[0, 0].item()


def stopped_between(folder):
    """Save alpha 7 over alpha 3 in a process that dies after its first rename."""
    save_pretrained(made(3), folder)
    code = (
        "import os, pathlib, sys; from fastlora import save_pretrained; "
        "from tests.adapter_files.test_pairs import made; replace = pathlib.Path.replace; "
        "pathlib.Path.replace = lambda *args: (replace(*args), os._exit(9)); "
        "save_pretrained(made(7), sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=False)
    assert done.returncode == 9


def edit(folder, **values):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))
    later = (folder / TENSORS).stat().st_mtime + 1  # clocks of file systems are coarse
    os.utime(folder / CONFIG, (later, later))


@pytest.mark.exhaustive
def test_a_save_that_was_stopped_between_its_files_is_no_adapter_and_the_next_one_is(tmp_path):
    stopped_between(tmp_path)
    with pytest.raises(AdapterError, match=r"do not belong together.*Save the adapter again"):
        load_pretrained(mlp(), tmp_path)
    save_pretrained(made(5), tmp_path)
    assert numbers(load_pretrained(mlp(), tmp_path)) == (5, 5)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, TENSORS}


def test_a_load_waits_for_the_second_file(tmp_path, monkeypatch):
    save_pretrained(made(3), tmp_path / "old")
    save_pretrained(made(7), tmp_path / "new")
    (tmp_path / "new" / TENSORS).replace(tmp_path / "old" / TENSORS)
    monkeypatch.setattr(
        opening.time, "sleep", lambda _: (tmp_path / "new" / CONFIG).replace(tmp_path / "old" / CONFIG)
    )
    assert numbers(load_pretrained(mlp(), tmp_path / "old")) == (7, 7)


@pytest.mark.exhaustive
@pytest.mark.parametrize("form", ["directory", "file"])
def test_a_load_beside_savers_has_one_adapter_whole(tmp_path, form):
    models = [made(alpha) for alpha in (3, 7)]
    save, load, path = save_pretrained, load_pretrained, tmp_path
    if form == "file":
        save, load, path = save_adapter, load_adapter, tmp_path / "adapter.safetensors"
    save(models[0], path)
    done = threading.Event()

    def keep_saving(model):
        while not done.is_set():
            save(model, path)

    savers = [threading.Thread(target=keep_saving, args=(model,)) for model in models]
    for saver in savers:
        saver.start()
    try:
        seen = {numbers(load(mlp(), path)) for _ in range(60)}
    finally:
        done.set()
        for saver in savers:
            saver.join()
    assert seen <= {(3, 3), (7, 7)}


def test_a_config_that_was_edited_by_hand_is_taken_and_said(tmp_path):
    save_pretrained(made(3), tmp_path)
    edit(tmp_path, lora_alpha=6)
    with pytest.warns(UserWarning, match="adapter_config.json was changed after it was saved"):
        assert numbers(load_pretrained(mlp(), tmp_path)) == (6, 3)


def test_of_two_saves_that_end_the_other_way_round_none_looks_edited(tmp_path, monkeypatch):
    """The later one wrote its drafts first, and waited for the earlier one's renames."""
    put, late = drafts._put_in_place, []

    def put_in_place(written):
        if not late:
            late.append(True)
            save_pretrained(made(3), tmp_path)  # begins later, ends earlier
            time.sleep(0.02)
        put(written)

    monkeypatch.setattr(drafts, "_put_in_place", put_in_place)
    save_pretrained(made(7), tmp_path / "late")
    config, tensors = (tmp_path / name for name in (CONFIG, TENSORS))
    assert (tmp_path / "late" / TENSORS).stat().st_mtime_ns > config.stat().st_mtime_ns
    assert tensors.stat().st_mtime_ns >= config.stat().st_mtime_ns


def test_an_edit_without_effect_is_not_worth_a_word(tmp_path):
    save_pretrained(made(3), tmp_path)
    edit(tmp_path, base_model_name_or_path="elsewhere/model", lora_alpha=3.0, inference_mode=False)
    assert numbers(load_pretrained(mlp(), tmp_path)) == (3, 3)


def test_tensors_without_a_digest_are_taken_as_they_are(tmp_path):
    from safetensors.torch import load_file, save_file

    save_pretrained(made(3), tmp_path)
    save_file(load_file(tmp_path / TENSORS), tmp_path / TENSORS, {"format": "pt"})
    edit(tmp_path, lora_alpha=6)
    os.utime(tmp_path / CONFIG, (0, 0))
    assert numbers(load_pretrained(mlp(), tmp_path)) == (6, 3)


def test_a_tensor_file_that_is_written_to_while_it_is_read_is_no_adapter(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(made(3), path)
    with opening.open_file(path) as found:
        path.write_bytes(path.read_bytes()[:-4] + bytes(4))
        os.utime(path, (1, 1))
        key = next(iter(found.file.headers))
        with pytest.raises(AdapterError, match="must stay as it is while it is read"):
            found.file.read(key, torch.device("cpu"), torch.float32)


def test_other_programs_read_what_is_written(tmp_path):
    save_pretrained(made(3), tmp_path)
    with safe_open(tmp_path / TENSORS, framework="pt") as file:
        assert set(file.metadata()) == {"format", opening.DIGEST_KEY}
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(mlp(), tmp_path)
    assert theirs.base_model.model[0].scaling["default"] == 3 / 2
