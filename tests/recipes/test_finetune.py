"""The fine-tuning job on the tiny model: it learns, resumes to the bit, and PEFT reads what it wrote."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fastlora.cli.commands import fastlora as command
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.model.find_layers import lora_layers
from fastlora.recipes.finetune import job
from fastlora.recipes.finetune.config_file import read_config, shipped
from fastlora.recipes.finetune.generate import GenerateOptions, Speaker
from fastlora.recipes.finetune.merge import merge
from fastlora.recipes.finetune.options import FinetuneOptions
from fastlora.recipes.finetune.resuming import ResumeError
from fastlora.recipes.finetune.rows import RowsError

pytest.importorskip("trl")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes"),
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
]
exhaustive = pytest.mark.exhaustive
DATA = str(Path(job.__file__).parents[1] / "data" / "questions.jsonl")
STEPS = 8
QUESTION = [{"role": "user", "content": "What is LoRA?"}]


def options_for(out, **options):
    steps = {"max_steps": STEPS, "batch": 2, "lr": 5e-3, "length": 64, "device": "cpu"}
    chosen = {"model": "tiny", "data": DATA, "out": out, "r": 4, "dropout": 0.1, **steps, **options}
    return FinetuneOptions(**chosen)


def speaker_of(**options):
    return Speaker(GenerateOptions(**{"device": "cpu", "max_tokens": 6, **options}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(result, lines of progress) of a short run."""
    said = []
    return job.run(options_for(tmp_path_factory.mktemp("run") / "out"), said.append), said


def adapter_of(result):
    return safetensors.load_file(result.options.out / "adapter" / "adapter_model.safetensors")


def test_the_loss_falls_and_the_results_hold_what_happened(trained):
    result, said = trained
    out = result.options.out
    found = json.loads((out / "results.json").read_text())
    losses = [loss for _, loss in found["losses"]]
    assert len(losses) == STEPS
    assert sum(losses[-3:]) < sum(losses[:3])
    assert found["evaluation"][-1][0] == STEPS
    assert found["rows"] == {"train": 9, "evaluation": 1}
    assert found["loss_on"] == "answers"
    assert found["kinds"][0]["path"] == "torch"
    assert sum(kind["layers"] for kind in found["kinds"]) == 14
    assert found["tokens"] > 0
    assert found["trainable"] == found["lora_parameters"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert f"step {STEPS} of {STEPS}: loss" in "\n".join(said)
    assert not list(out.glob(".fastlora-*"))


def test_a_run_that_was_cut_short_goes_on_to_the_same_bits(trained):
    result, _ = trained
    whole, out = adapter_of(result), result.options.out
    shutil.rmtree(out / "checkpoints" / f"checkpoint-{STEPS}")
    (out / "checkpoints" / "checkpoint-99").mkdir()  # a kill while it was written
    with pytest.raises(ResumeError, match="--resume"):
        job.run(result.options)
    with pytest.raises(ResumeError, match=r"lr was 0\.005, now 0\.004"):
        job.run(replace(result.options, lr=4e-3, resume=True))
    resumed = job.run(replace(result.options, resume=True))
    assert resumed.resumed_at == STEPS - 1
    assert 0 < resumed.tokens < result.tokens / 2  # a run from its start would have the same bits too
    assert resumed.losses == result.losses
    again = adapter_of(resumed)
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert any(value.any() for name, value in whole.items() if "lora_B" in name)


def test_peft_reads_the_adapter_and_says_the_same_tokens(trained):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = trained[0].options.out
    speaker = speaker_of(adapter=out / "adapter")
    base = AutoModelForCausalLM.from_pretrained(out / "base")
    ours, speaker.model = speaker.answer(QUESTION), PeftModel.from_pretrained(base, out / "adapter").eval()
    assert ours == speaker.answer(QUESTION)
    assert ours != speaker_of(model=str(out / "base")).answer(QUESTION)


def test_bad_data_leaves_nothing_behind(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a"}\n{"text": ""}\n')
    with pytest.raises(RowsError, match=r"data\.jsonl, line 2"):
        job.run(options_for(tmp_path / "out", data=str(data)))
    with pytest.raises(ValueError, match=r"a folder that exists .* got '\./no/such/model'"):
        job.run(options_for(tmp_path / "out", model="./no/such/model"))
    with pytest.raises(ValueError, match="q_projj"):
        job.run(options_for(tmp_path / "new" / "out", targets="q_projj"))
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize("found", [[], [Path("checkpoint-2")]], ids=["none", "one"])
def test_an_interrupt_says_how_to_go_on_where_that_is_possible(found, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastlora.cli.finetune.run", interrupted)
    monkeypatch.setattr("fastlora.cli.finetune.whole_checkpoints", lambda folder: found)
    done = CliRunner().invoke(command, ["finetune", "--config", "tiny", "--out", str(tmp_path)])
    assert done.exit_code not in (0, 2)
    assert ("--resume goes on" in done.output) == bool(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r must be"),
        ({"method": "dora2"}, "method must be one of"),
        ({"method": "full", "base": "nf4"}, "method must be lora or dora over a packed base"),
        ({"eval_share": 1.0}, "eval_share must be"),
        ({"lr": 0.0}, "lr must be"),
        ({"max_steps": 0}, "max_steps must be"),
        ({"data": ""}, "data must be"),
    ],
)
def test_options_are_checked(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        options_for(tmp_path, **options)


def test_every_recipe_that_ships_is_sound():
    names = set(FinetuneOptions.__dataclass_fields__)
    assert shipped() == ["chat", "qlora", "tiny"]
    for name in shipped():
        FinetuneOptions(**{"data": DATA, **read_config(name, names)})


def test_a_merged_model_is_not_written_through_a_link_to_nothing(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError, match="is a link to nothing"):
        merge(tmp_path, None, tmp_path / "out")


@exhaustive
def test_a_merged_model_says_what_the_adapter_said(trained, tmp_path):
    out = trained[0].options.out
    merge(out / "adapter", None, tmp_path / "merged")
    with pytest.raises(FileExistsError, match="holds something"):
        merge(out / "adapter", None, tmp_path / "merged")
    with_adapter = speaker_of(adapter=out / "adapter", max_tokens=8)
    plain = speaker_of(model=str(tmp_path / "merged"), max_tokens=8)
    assert not list(lora_layers(plain.model))
    assert plain.answer(QUESTION) == with_adapter.answer(QUESTION)


@exhaustive
def test_the_recipe_learns_its_answers_by_heart(tmp_path):
    names = set(FinetuneOptions.__dataclass_fields__)
    options = FinetuneOptions(**read_config("tiny", names), out=tmp_path / "out", device="cpu")
    job.run(options)
    speaker = speaker_of(adapter=tmp_path / "out" / "adapter", max_tokens=64)
    assert speaker.answer(QUESTION) == "A low-rank update of a frozen weight."


@exhaustive
def test_over_four_bits_adapters_keep_their_dtype_and_resume_to_the_bit(tmp_path):
    pytest.importorskip("bitsandbytes")
    options = options_for(tmp_path / "out", base="nf4")
    result = job.run(options)
    whole = adapter_of(result)
    assert {value.dtype for value in whole.values()} == {torch.float32}
    assert "bitsandbytes" in result.kinds[0].W
    shutil.rmtree(options.out / "checkpoints" / f"checkpoint-{STEPS}")
    again = adapter_of(job.run(replace(options, resume=True)))
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    speaker = speaker_of(adapter=options.out / "adapter", base="nf4", max_tokens=4)
    assert isinstance(next(layer for _, layer in lora_layers(speaker.model)), QuantizedLoRALinear)
    assert speaker.answer(QUESTION)


@exhaustive
def test_the_method_dora_trains_magnitudes_too_and_writes_them(tmp_path):
    result = job.run(options_for(tmp_path / "out", method="dora"))
    assert result.losses[-1][1] < result.losses[0][1]
    assert any("lora_magnitude_vector" in name for name in adapter_of(result))
    assert speaker_of(adapter=tmp_path / "out" / "adapter", max_tokens=4)


@exhaustive
def test_the_method_full_trains_every_weight_and_writes_a_model(tmp_path):
    result = job.run(options_for(tmp_path / "out", method="full"))
    assert result.trainable == result.base_parameters
    assert result.kinds == ()
    assert result.losses[-1][1] < result.losses[0][1]
    assert speaker_of(model=str(tmp_path / "out" / "model"), max_tokens=4)


@exhaustive
@pytest.mark.parametrize(
    ("row", "loss_on"),
    [
        ({"prompt": "one two ", "completion": "three four"}, "completions"),
        ({"text": "one two"}, "all tokens"),
    ],
)
@pytest.mark.parametrize("packing", [False, True])
def test_each_form_of_data_is_trained_on(tmp_path, row, loss_on, packing):
    data = tmp_path / "data.jsonl"
    data.write_text(f"{json.dumps(row)}\n" * 12)
    result = job.run(options_for(tmp_path / "out", data=str(data), packing=packing, length=16))
    assert result.loss_on == loss_on
    assert result.losses[-1][1] < result.losses[0][1]
    tokens = len("".join(row.values())) + 1  # bytes, and the end
    if packing:
        assert result.sequences == -(-result.rows["train"] * tokens // 16)
    else:
        assert result.sequences == result.rows["train"]


@exhaustive
def test_checkpointing_changes_no_bit(tmp_path):
    plain = job.run(options_for(tmp_path / "plain"))
    again = job.run(options_for(tmp_path / "again", checkpointing=True))
    assert plain.losses == again.losses


@exhaustive
def test_messages_need_a_chat_template(tmp_path):
    from fastlora.recipes.finetune.tiny import write_tiny

    write_tiny(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="model must have a chat template"):
        job.run(options_for(tmp_path / "out", model=str(tmp_path / "base")))
    assert not (tmp_path / "out").exists()
