"""torch.compile over a whole Transformers model with LoRA on every linear layer."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fastlora import LoRAConfig, apply_lora, lora_layers
from tests.integrations.architectures import tiny
from tests.models import with_update

# Dynamo looks at an autograd.Function by instantiating it, which torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def step(model, run, tokens):
    """The loss and the gradients of the adapters."""
    torch.manual_seed(3)
    loss = run(input_ids=tokens, labels=tokens, use_cache=False).loss
    return [loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]


@pytest.mark.exhaustive  # other nets are compiled in tests/training and tests/autograd
@pytest.mark.parametrize("layers", [1, 2])
def test_a_llama_is_one_graph_and_texts_of_any_length_take_the_second_compilation(layers):
    torch.compiler.reset()
    model = tiny("Llama", num_hidden_layers=layers)
    with_update(apply_lora(model, LoRAConfig(r=2, alpha=3, dropout=0.3))).train()
    assert len(list(lora_layers(model))) == 7 * layers
    counter = CompileCounterWithBackend("aot_eager")
    compiled, frames = torch.compile(model, fullgraph=True, backend=counter), []
    for length in (5, 9, 17, 12):
        tokens = torch.randint(61, (2, length))
        for ours, eager in zip(step(model, compiled, tokens), step(model, model, tokens), strict=True):
            assert torch.equal(ours, eager)
        frames.append(counter.frame_count)
    assert frames == [1, 2, 2, 2]
