"""TRL's preference training: where there is no reference model, it is the adapter as it was, or LoRA off."""

import contextlib
import copy
import math
from types import SimpleNamespace

import pytest
import torch

from fastlora import reference_model
from fastlora.integrations.peft import accelerate_peft, forward_counts, register
from tests.integrations.architectures import pair, tiny
from tests.integrations.test_trainer import SETTINGS, Recorded, Tokens, tokenizer

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
]
STEPS = 2


def preferred(kind, model, folder, **options):
    """The losses of a trainer ("DPO" or "KTO"), and the trainer."""
    rows = [[str(n) for n in row.tolist()] for row in Tokens().rows]
    data = {
        "prompt": [" ".join(row[:3]) + " " for row in rows],
        "chosen": [" ".join(row[3:]) for row in rows],
    }
    data["rejected"] = [" ".join(reversed(row[3:])) for row in rows]
    if kind == "KTO":
        data = {
            "prompt": data["prompt"] * 2,
            "completion": data["chosen"] + data["rejected"],
            "label": [True] * len(rows) + [False] * len(rows),
        }
    settings = {**SETTINGS, "max_steps": STEPS, "bf16": False}
    arguments = getattr(trl, f"{kind}Config")(output_dir=str(folder), **settings)
    trainer = getattr(trl, f"{kind}Trainer")
    recorded = type("RecordedTrainer", (Recorded, trainer), {})(
        model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(data),
        processing_class=tokenizer(),
        **options,
    )
    recorded.train()
    return torch.tensor(recorded.losses, dtype=torch.float64), recorded


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_a_finished_adapter_is_the_reference_of_the_one_that_is_trained(tmp_path, kind):
    stock = pair("Llama")[1].double()
    fused = copy.deepcopy(stock)
    accelerate_peft(fused)
    theirs, _ = preferred(kind, stock, tmp_path)
    ours, trainer = preferred(kind, fused, tmp_path)
    torch.testing.assert_close(ours, theirs)
    assert ours.unique().numel() == STEPS
    assert "ref" in trainer.model.peft_config
    if kind == "DPO":
        assert ours[0].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_with_a_config_lora_off_is_the_reference(tmp_path, kind):
    from peft import LoraConfig

    base, config = tiny("Llama").double(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    torch.manual_seed(0)
    theirs, _ = preferred(kind, copy.deepcopy(base), tmp_path, peft_config=config)
    torch.manual_seed(0)
    ours, trainer = preferred(kind, base, tmp_path, peft_config=register(config))
    torch.testing.assert_close(ours, theirs)
    assert ours[1] < ours[0]
    assert set(forward_counts(trainer.model)) == {"fused", "adapters are disabled"}


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_a_model_of_ours_takes_itself_as_its_reference_as_pefts_does(tmp_path, kind):
    torch.manual_seed(0)
    ours, stock = (each.double() for each in pair("Llama"))
    theirs, _ = preferred(kind, stock, tmp_path)
    losses, trainer = preferred(kind, ours, tmp_path, ref_model=reference_model(ours))
    torch.testing.assert_close(losses, theirs)
    assert losses.unique().numel() == STEPS
    weights = (model.model.layers[0].self_attn.q_proj.weight for model in (trainer.model, trainer.ref_model))
    assert len({weight.data_ptr() for weight in weights}) == 1
    assert losses.unique().numel() == STEPS


def sent_to_vllm(model):
    """What TRL sends vLLM of a model, by the names it gives; vLLM itself is not needed for that."""
    generation = pytest.importorskip("trl.generation.vllm_generation")
    sender = object.__new__(generation.VLLMGeneration)
    sender.model = model
    sender._dist = SimpleNamespace(gather_params=lambda _: contextlib.nullcontext(), is_fsdp=False)
    return {name: values.clone() for name, values in sender._iter_named_params()}


def test_vllm_gets_merged_weights_of_a_peft_model_by_the_plain_models_names():
    stock = pair("Llama")[1].double()
    fused = copy.deepcopy(stock)
    accelerate_peft(fused)
    ours, theirs, plain = sent_to_vllm(fused), sent_to_vllm(stock), tiny("Llama").double()
    assert set(ours) == {name for name, _ in plain.named_parameters()}
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours[(name := "model.layers.0.mlp.up_proj.weight")], plain.get_parameter(name))
