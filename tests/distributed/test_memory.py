"""The memory formula, on the shapes of Llama 3.1 8B and without its memory."""

from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import fastlora
from fastlora.parallel import memory_per_gpu
from tests.models import adapted, mlp

pytest.importorskip("transformers")

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def llama():
    """The 8B in bf16 with fp32 updates of rank 16 on all linear layers, on "meta"."""
    from bench.model import LLAMA, SIZES

    with torch.device("meta"):
        model = LLAMA.build(SIZES["8B"])
    config = fastlora.LoRAConfig(r=16, adapter_dtype=torch.float32)
    return fastlora.apply_lora(model.bfloat16(), config)


@pytest.fixture
def eight_processes():
    """A process group that this process alone makes believe to be the first of eight of."""
    distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield init_device_mesh("cpu", (8,))
    distributed.destroy_process_group()


def test_the_documents_table_is_the_formulas(llama):
    lines = []
    for processes in (1, 2, 8, 64):
        memory = memory_per_gpu(llama, processes, llama.model.layers)
        figures = " | ".join(f"{size / 2**30:.2f}" for size in (*memory, memory.total))
        lines.append(f"| {processes} | {figures} |")
    assert "\n".join(lines) in DOCUMENT.read_text(encoding="utf-8"), "\n".join(lines)


def test_the_formula_is_what_fully_shard_leaves_on_the_first_of_eight(llama, eight_processes):
    memory = memory_per_gpu(llama, 8, llama.model.layers)
    for layer in llama.model.layers:
        fully_shard(layer, mesh=eight_processes)
    fully_shard(llama, mesh=eight_processes)
    parts = [(each.to_local(), each.requires_grad) for each in llama.parameters()]
    assert memory.weights == sum(part.nbytes for part, trained in parts if not trained)
    assert memory.updates == memory.gradients == sum(part.nbytes for part, trained in parts if trained)
    assert memory.optimizer == 2 * memory.updates  # Adam's two moments, in fp32 as the updates


def test_without_processes_to_divide_among_nothing_is_gathered():
    memory = memory_per_gpu(adapted(mlp()))
    assert memory.gathered == 0
    assert memory.weights == 4 * (6 * 5 + 5 + 5 * 3 + 3)
    assert memory.updates == 4 * 2 * ((6 + 5) + (5 + 3))


def test_a_number_of_processes_below_one_is_refused():
    with pytest.raises(ValueError, match="processes must be at least 1; got 0"):
        memory_per_gpu(mlp(), 0)
