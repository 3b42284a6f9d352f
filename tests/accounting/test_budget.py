"""What training takes is what a real step takes, byte for byte."""

import json

import pytest
import torch
from click.testing import CliRunner

from fastlora import LoRAConfig, apply_lora, save_pretrained
from fastlora.accounting.activations import saved_bytes
from fastlora.accounting.budget import training_budget
from fastlora.accounting.meta_models import BlueprintError, blueprint_budget
from fastlora.cli import commands
from tests.models import mlp

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
GPT3 = " ".join(
    f"{name}={K},{N}*96"
    for name, K, N in [
        *((name, 12288, 12288) for name in "qkvo"),
        ("up", 12288, 49152),
        ("down", 49152, 12288),
    ]
)


def invoke(*arguments):
    return CliRunner().invoke(commands.fastlora, ["budget", *map(str, arguments)])


def tensor_bytes(path):
    """Bytes of a safetensors file behind its header."""
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def real_step(model, x):
    """Bytes of gradients, of Adam's moments, and saved for backward, of a step that is really taken."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    activations = saved_bytes(lambda: model(x), list(model.parameters()))
    optimizer = torch.optim.Adam(trained)
    model(x).square().sum().backward()
    optimizer.step()
    states = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return {
        "gradients": sum(parameter.grad.nbytes for parameter in trained),
        "optimizer": sum(state.nbytes for state in states),
        "activations": activations,
    }


@pytest.mark.parametrize("adapter_dtype", [None, torch.float64])
def test_every_number_is_that_of_a_real_step(tmp_path, adapter_dtype):
    config = LoRAConfig(r=2, target_modules=["0"], adapter_dtype=adapter_dtype)
    x = torch.randn(7, 6)
    budget = training_budget(mlp(), config, lambda model: model(x))
    full, model = mlp(), apply_lora(mlp(), config)
    save_pretrained(model, tmp_path)
    for needs, net in ((budget.full, full), (budget.lora, model)):
        step = real_step(net, x)
        assert {name: getattr(needs, name) for name in step} == step
        assert needs.weights == sum(parameter.nbytes for parameter in net.parameters())
        assert needs.total == needs.weights + sum(step.values())
    assert budget.parameters == budget.full.trainable == 6 * 5 + 5 + 5 * 3 + 3
    assert budget.lora.trainable == 2 * (6 + 5)
    assert budget.lora.saved == tensor_bytes(tmp_path / "adapter_model.safetensors")


def test_layers_trained_before_count_in_full_even_if_they_came_frozen():
    net = mlp()
    net.requires_grad_(False)
    budget = training_budget(net.eval(), LoRAConfig(r=1), lambda model: model(torch.randn(2, 6)))
    assert budget.full.trainable == budget.parameters


def test_a_list_of_layers_needs_no_memory_and_no_name():
    budget = blueprint_budget("8,6; 6,4*2", LoRAConfig(r=3), batch=2, tokens=5, dtype=torch.float32)
    assert budget.parameters == 8 * 6 + 2 * 6 * 4
    assert budget.lora.trainable == 3 * (8 + 6 + 2 * (6 + 4))
    assert budget.full.activations == 4 * 2 * 5 * (8 + 6 + 6)
    assert budget.lora.activations == budget.full.activations + 3 * (4 * 2 * 5 * 3)


def test_a_frozen_layer_saves_nothing():
    budget = blueprint_budget("q=8,6 k=8,6", LoRAConfig(r=1, target_modules=["q"]), tokens=5)
    assert budget.full.activations == 2 * (2 * 5 * 8)
    assert budget.lora.activations == 2 * 5 * 8 + 4 * 5


@pytest.fixture(scope="module")
def gpt3():
    config = LoRAConfig(r=4, target_modules=["q", "v"], adapter_dtype=torch.float16)
    return blueprint_budget(GPT3, config, tokens=2048, dtype=torch.float16)


@pytest.mark.exhaustive
def test_gpt3_has_ten_thousand_times_fewer_trainable_parameters(gpt3):
    """Hu et al., arXiv 2106.09685, section 4.2: from 350 GB to 35 MB with r = 4 on q and v.

    The linear layers alone hold 173.9 of the 175 billion parameters, and their ratio is 3 d / 4 r, 9,216; the
    published 10,000 is that ratio rounded, or 350 GB over 35 MB, which is 36 MiB rounded down.
    """
    assert gpt3.lora.trainable == 2 * 96 * 4 * 2 * 12288 == 18_874_368
    assert gpt3.full.trainable // gpt3.lora.trainable == 9_216
    assert round(gpt3.full.trainable / gpt3.lora.trainable, -4) == 10_000
    assert round(gpt3.full.saved / 1e9, -1) == 350
    assert gpt3.lora.saved / 2**20 == 36


@pytest.mark.exhaustive
def test_gpt3_takes_three_times_less_memory(gpt3):
    """The same section: from 1.2 TB to 350 GB, for the optimizer holds nothing of frozen parameters.

    Weights and Adam's moments are three numbers a parameter against one, which is the published factor. With
    the gradients they are four, 1.4 TB; the published 1.2 TB lies between.
    """

    def held(needs, *names):
        return sum(getattr(needs, name) for name in names)

    without = [held(needs, "weights", "optimizer") for needs in (gpt3.full, gpt3.lora)]
    everything = [held(needs, "weights", "optimizer", "gradients") for needs in (gpt3.full, gpt3.lora)]
    assert round(without[0] / without[1], 1) == 3.0
    assert round(everything[0] / everything[1], 1) == 4.0
    assert without[0] < 1.2e12 < everything[0]
    assert round(everything[1] / 1e9, -1) == 350


def test_a_transformers_config_counts_as_the_real_model_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    config = LoRAConfig(r=2, target_modules=["q_proj", "v_proj"])
    budget = blueprint_budget(str(path), config, batch=2, tokens=5, dtype=torch.float32)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, use_cache=False))
    ids = torch.zeros(2, 5, dtype=torch.long)
    assert training_budget(model, config, lambda model: model(input_ids=ids)) == budget
    assert budget.lora.trainable == 2 * 2 * ((64 + 64) + (64 + 32))


@pytest.mark.parametrize("spec", ["12,0", "12,", "a=b,c", "12,3 x", "1,2*0", "1.5,2"])
def test_a_list_that_is_none_is_refused(spec):
    with pytest.raises(BlueprintError, match="must list layers as K,N or NAME=K,N"):
        blueprint_budget(spec, LoRAConfig())


def test_a_file_that_is_no_config_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(BlueprintError, match="must be a Transformers config"):
        blueprint_budget(str(path), LoRAConfig())


def test_a_model_that_takes_no_token_ids_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1})
    )
    with pytest.raises(BlueprintError, match=r"config.json' must"):
        blueprint_budget(str(path), LoRAConfig())


def test_the_command_prints_both_ways_and_their_ratio():
    done = invoke("--model", "q=64,64*2 up=64,256", "--targets", "q, up", "--rank", 2, "--tokens", 8)
    assert done.exit_code == 0, done.output
    for text in ("trained parameters", "24,576", "1,152", "49.2 kB", "full / LoRA"):
        assert text in done.output


def test_the_command_prints_json_in_bytes():
    done = invoke("--model", "64,64", "--rank", 2, "--adapter-dtype", "float32", "--json")
    found = json.loads(done.output)
    assert (found["parameters"], found["lora"]["trainable"], found["lora"]["saved"]) == (4096, 256, 1024)
    parts = ("weights", "gradients", "optimizer", "activations")
    assert found["lora"]["total"] == sum(found["lora"][part] for part in parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "64;64,64"], "must list layers as K,N"),
        (["--model", "64,64", "--rank", 0], "r must be an int >= 1; got 0"),
        (["--model", "64,64", "--tokens", 0], "tokens must be an int >= 1; got 0"),
        (["--model", "q=64,64", "--targets", "v"], "'v' must match a module; it matches none"),
        ([], "Missing option '--model'"),
    ],
)
def test_what_cannot_be_counted_is_a_usage_error(arguments, message):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in done.output
