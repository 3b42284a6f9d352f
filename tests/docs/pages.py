"""The Python blocks of README and docs, and what is there before a page's first line."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# A page that shows a few lines of a larger script leaves out how that begins. Here it is, by page and the number
# of the block.
LLAMA = """
import copy, peft, torch, transformers
from peft import get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig
from tests.integrations.architectures import tiny

import fastlora
from fastlora import LoRAConfig, add_adapter, apply_lora, save_pretrained

class AutoModelForCausalLM:
    @staticmethod
    def from_pretrained(name, **options):
        assert name == "..."
        tiny("Llama", hidden_size=64, intermediate_size=128).save_pretrained("base")
        return transformers.AutoModelForCausalLM.from_pretrained("base", **options)
"""
ALONE = """
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("tensor",))
"""
MIXTRAL = """
in_place, model = apply_lora, tiny("Mixtral")

def apply_lora(model, config):
    return in_place(copy.deepcopy(model), config)
"""
BEFORE = {
    "README.md": {
        0: LLAMA,
        2: "linear = nn.Linear(8, 4)",
        3: 'add_adapter(model, "fr", LoRAConfig(r=2, init="orthogonal"))\n'
        'add_adapter(model, "de", LoRAConfig(r=2, init="orthogonal"))',
        4: 'base = tiny("Llama")',
    },
    "docs/experts.md": {0: LLAMA + MIXTRAL},
    "docs/quantized.md": {0: LLAMA},
    "docs/scaling.md": {
        0: LLAMA + ALONE + 'model, config = tiny("Llama"), LoRAConfig(r=2)',
        1: 'model = tiny("Llama").bfloat16()',
        2: 'model = apply_lora(tiny("Llama"), LoRAConfig(r=2, target_modules=["q_proj"]))',
    },
}  # fmt: skip
AFTER = {"docs/scaling.md": "distributed.destroy_process_group()"}


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def script(page: Path) -> str:
    """All blocks of a page as one script, with what comes before and after them."""
    before = BEFORE.get(name_of(page), {})
    parts = [f"{before.get(number, '')}\n{block}" for number, block in enumerate(blocks(page))]
    return "\n".join([*parts, AFTER.get(name_of(page), "")])
