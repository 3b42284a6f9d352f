"""Fine-tune the digits' net on many GPUs or processes, each with the whole model: DistributedDataParallel.

    pip install "fastlora-triton[demo]"
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --standalone --nproc_per_node 2 --max-restarts 3 examples/ddp_digits.py --out ddp-run

It runs as it stands: on GPUs with nccl, else on the CPU with gloo. Every few steps process 0 writes a
checkpoint. Started again with the same --out, by you or by torchrun after a worker died, it goes on from
there, and ends with the losses of a run that nothing happened to.

The variable has torchrun start a new store for every attempt. Without it (torch 2.13) restarted workers may
meet the addresses of dead ones in the old store, and fail to connect.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import fastlora
from fastlora.parallel import check_all_trained
from fastlora.recipes.digits import read_sample
from fastlora.recipes.mlp import DigitsMLP


def start() -> torch.device:
    """Join the other processes; this one's device."""
    gpu = torch.cuda.is_available()
    distributed.init_process_group("nccl" if gpu else "gloo")
    if not gpu:
        return torch.device("cpu")
    torch.cuda.set_device(distributed.get_node_local_rank())
    return torch.device("cuda", torch.cuda.current_device())


def write(path: Path, content: dict[str, object]) -> None:
    """A file appears whole or not at all: the worker may die while it writes."""
    draft = path.with_suffix(".draft")
    torch.save(content, draft)
    draft.replace(path)


def main() -> None:
    """Train, and save the adapter as PEFT does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="digits in a step, of all processes")
    parser.add_argument("--out", type=Path, default=Path("ddp-run"), help="a folder (%(default)s)")
    options = parser.parse_args()
    device = start()
    train(options, device)
    # All is written before anybody leaves. And torch's thread may still hold the last collective's tensor:
    # one that Python knows would crash a process that is already ending, a barrier's does not.
    distributed.barrier()
    # DDP must be gone by now. If it held the group last, it would wait for torch's thread while that waits
    # for Python.
    gc.collect()
    distributed.destroy_process_group()


def train(options: argparse.Namespace, device: torch.device) -> None:
    """Train from the last checkpoint on, and save."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)  # of A
    model = fastlora.apply_lora(DigitsMLP(seed=0), fastlora.LoRAConfig(r=4, alpha=8)).to(device)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)

    checkpoint = options.out / "checkpoint.pt"
    losses: list[float] = []
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["updates"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        losses = saved["losses"]
        print(f"process {rank} goes on at step {len(losses)}", flush=True)
    # Nobody may train and write a new checkpoint before everybody has read the old one.
    distributed.barrier()
    wrapped = DistributedDataParallel(model)

    x, labels = read_sample().train.rows(device, torch.float32)
    for step in range(len(losses), options.steps):
        # The batch of a step depends on its number alone, so that a resumed run sees the same ones.
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))
        rows = order[: options.batch].chunk(world_size)[rank].to(device)
        loss = nn.functional.cross_entropy(wrapped(x[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            check_all_trained(wrapped)
        optimizer.step()
        mean = loss.detach()
        distributed.all_reduce(mean)
        losses.append(mean.item() / world_size)
        if rank == 0 and len(losses) % options.every == 0:
            options.out.mkdir(parents=True, exist_ok=True)
            write(checkpoint, {"updates": trained, "optimizer": optimizer.state_dict(), "losses": losses})

    if rank == 0:
        fastlora.save_pretrained(model, options.out / "adapter")
        (options.out / "losses.json").write_text(json.dumps(losses))
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; saved {options.out}")


if __name__ == "__main__":
    main()
