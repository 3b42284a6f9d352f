"""Training on many GPUs: additions to torch's DistributedDataParallel, FSDP2 and tensor parallel for LoRA."""

from fastlora.parallel.checkpoints import LoadPlanner
from fastlora.parallel.memory import Memory, memory_per_gpu
from fastlora.parallel.tensor import ColwiseParallel, RowwiseParallel
from fastlora.parallel.unused import check_all_trained

__all__ = [
    "ColwiseParallel",
    "LoadPlanner",
    "Memory",
    "RowwiseParallel",
    "check_all_trained",
    "memory_per_gpu",
]
