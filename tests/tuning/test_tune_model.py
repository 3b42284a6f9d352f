"""`fastlora.tune` and the command: which layers are tuned for, what is said, a dry run."""

import json

import peft
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fastlora
from fastlora import FusedLoRALinear, LoRAConfig, apply_lora
from fastlora.cli.commands import fastlora as command
from fastlora.formula.cost import Problem
from fastlora.integrations.peft import accelerate_peft
from fastlora.routes.choices import read_file
from fastlora.tune_model import requests_of, untuned
from fastlora.tuning import machine
from fastlora.tuning.machine import Machine
from fastlora.tuning.report import Request, TuneReport
from tests.packed import linear_4bit

CPU = torch.device("cpu")
PROBLEM = Problem(24, 24, 16, 4, torch.float16, torch.float32)
HERE = Machine(CPU, "a test")


def test_a_models_layers_are_tuned_for_once_each(monkeypatch):
    net = nn.Sequential(
        FusedLoRALinear(24, 16, r=4, dtype=torch.bfloat16),
        FusedLoRALinear(24, 16, r=4, dtype=torch.bfloat16),
        FusedLoRALinear(16, 8, r=2, dropout=0.1),
    )
    found = requests_of(net, [64, 128])
    assert len(found) == 4
    assert Request(Problem(64, 24, 16, 4, torch.bfloat16, torch.float32)) in found
    assert Request(Problem(128, 16, 8, 2, torch.float32, torch.float32), True) in found
    assert {one.problem.dtype for one in requests_of(net, [64], torch.float16)} == {torch.float16}


def test_pefts_layers_are_tuned_for_too_fused_or_not_and_over_packed_bases():
    base = nn.ModuleDict({"q": nn.Linear(24, 16), "k": nn.Linear(24, 16), "v": nn.Linear(16, 8)}).half()
    config = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=["q", "k", "v"], rank_pattern={"v": 2})
    model = peft.get_peft_model(base, config)
    wanted = {
        Request(Problem(64, 24, 16, 4, torch.float16, torch.float32), True),
        Request(Problem(64, 16, 8, 2, torch.float16, torch.float32), True),
    }
    found = requests_of(model, [64])
    assert len(found) == 2
    assert set(found) == wanted
    accelerate_peft(model)
    assert set(requests_of(model, [64])) == wanted
    packed = peft.get_peft_model(
        nn.ModuleDict({"q": linear_4bit(torch.randn(16, 24))}), peft.LoraConfig(r=4, target_modules=["q"])
    )
    (one,) = requests_of(packed, [64])
    assert one.problem == Problem(64, 24, 16, 4, torch.float32, torch.float32, "bnb-4bit")


def test_layers_that_take_other_code_are_named_ours_and_pefts(monkeypatch):
    def mixture():
        return nn.ModuleDict({"q": nn.Linear(24, 16), "e": nn.Embedding(9, 24)})

    ours = apply_lora(mixture(), LoRAConfig(r=2, target_modules=["q", "e"]))
    assert untuned(ours) == ["1 FusedLoRAEmbedding: e"]
    pefts = peft.get_peft_model(mixture(), peft.LoraConfig(r=2, target_modules=["q", "e"]))
    assert untuned(pefts) == ["1 Embedding: base_model.model.e"]
    monkeypatch.setattr("fastlora.tune_model.tune_requests", lambda *_, **__: TuneReport("a test"))
    assert "  1 FusedLoRAEmbedding: e" in str(fastlora.tune(ours))


@pytest.mark.exhaustive
def test_experts_are_named():
    from tests.integrations.architectures import tiny  # imports Transformers

    model = apply_lora(tiny("Mixtral"), LoRAConfig(r=2))
    assert [line.split(":")[0] for line in untuned(model)] == ["4 FusedLoRAExperts"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": [0]}, "rows must be"),
        ({"rows": []}, "number of rows"),
        ({"minutes": 0}, "minutes must be above 0"),
        ({}, "tuning needs a GPU"),
    ],
    ids=str,
)
def test_what_cannot_be_tuned_is_said(options, message):
    if torch.cuda.is_available() and not options:
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=message):
        fastlora.tune(nn.Sequential(FusedLoRALinear(8, 8, r=2)), **options)


def test_what_the_driver_says_is_kept(monkeypatch, tmp_path):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho '570.1, 1980 MHz, 1980 MHz, 700.00 W, Disabled'\n")
    script.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda _: str(script))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    facts = Machine(torch.device("cuda", 0), "NVIDIA Test").facts()
    assert facts["driver"] == "570.1"
    assert facts["power_limit"] == "700.00 W"
    assert facts["mig"] == "Disabled"
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    assert Machine(torch.device("cuda", 0), "NVIDIA Test").facts()["clock"] == "unknown"


@pytest.mark.exhaustive
def test_a_dry_run_takes_every_step(tmp_path):
    out = tmp_path / "choices.json"
    found = CliRunner().invoke(
        command, ["tune", "--dry-run", "--shape", "512,64,64,8", "--out", str(out), "--json"]
    )
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["dry"]
    assert told["failures"] == []
    assert [one["pass"] for one in told["found"]] == ["forward", "backward"]
    assert len(read_file(out).entries) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--shape", "1,2,3"], "--shape must be 4 whole numbers M,K,N,r"),
        (["--rows", "many"], "--rows must be whole numbers"),
        (["--model", "4,4", "--shape", "1,2,3,4"], "must not both be given"),
        (["--model", "nowhere/at-all.json"], "nowhere"),
        (["--export", "x.json"], "torch sees none"),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_line(given, message):
    found = CliRunner().invoke(command, ["tune", "--dry-run", *given])
    assert found.exit_code in (1, 2)
    assert message in found.output
    assert "Traceback" not in found.output
