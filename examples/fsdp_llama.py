"""Fine-tune a Llama on many GPUs or processes, each with a part of the model: FSDP2.

    pip install fastlora-triton transformers
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --standalone --nproc_per_node 2 --max-restarts 3 examples/fsdp_llama.py --out fsdp-run

It runs as it stands, offline: on GPUs with nccl, else on the CPU with gloo. The model is a Llama with small
random weights, frozen in bf16 and with fp32 updates; the data are sequences in which each token is the one
before, plus one. Every few steps all processes write a checkpoint of their parts. Started again with the same
--out, by you or by torchrun after a worker died, it goes on from there, also with more or fewer processes.

The variable has torchrun start a new store for every attempt. Without it (torch 2.13) restarted workers may
meet the addresses of dead ones in the old store, and fail to connect.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

import fastlora

VOCABULARY, LENGTH = 64, 16
# The base weights come from where they came from before; only what is trained is in a checkpoint.
TRAINED = StateDictOptions(ignore_frozen_params=True)


def start() -> torch.device:
    """Join the other processes; this one's device."""
    gpu = torch.cuda.is_available()
    distributed.init_process_group("nccl" if gpu else "gloo")
    if not gpu:
        return torch.device("cpu")
    torch.cuda.set_device(distributed.get_node_local_rank())
    return torch.device("cuda", torch.cuda.current_device())


def build(device: torch.device) -> nn.Module:
    """The model in parts: a group for each decoder layer, and one for the rest."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    model.to(device, torch.bfloat16)
    fastlora.apply_lora(model, fastlora.LoRAConfig(r=8, alpha=16, adapter_dtype=torch.float32))
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def save(
    model: nn.Module, optimizer: torch.optim.Optimizer, losses: torch.Tensor, out: Path, step: int
) -> None:
    """Write everybody's parts, then the step's number: a worker may die at any moment."""
    weights, moments = get_state_dict(model, optimizer, options=TRAINED)
    state = {"model": weights, "optimizer": moments, "losses": losses}
    checkpoint.save(state, checkpoint_id=out / f"step-{step}")
    if distributed.get_rank() == 0:
        draft = out / "latest.draft"
        draft.write_text(str(step))
        draft.replace(out / "latest")


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, losses: torch.Tensor, out: Path) -> int:
    """Read the last whole checkpoint, if there is one; the step to go on at."""
    latest = out / "latest"
    if not latest.exists():
        return 0
    step = int(latest.read_text())
    weights, moments = get_state_dict(model, optimizer, options=TRAINED)
    state = {"model": weights, "optimizer": moments, "losses": losses}
    checkpoint.load(state, checkpoint_id=out / f"step-{step}")
    set_state_dict(
        model,
        optimizer,
        model_state_dict=weights,
        optim_state_dict=moments,
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )
    print(f"process {distributed.get_rank()} goes on at step {step}", flush=True)
    return step


def main() -> None:
    """Train, and save the adapter as PEFT does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="sequences in a step, of all processes")
    parser.add_argument("--out", type=Path, default=Path("fsdp-run"), help="a folder (%(default)s)")
    options = parser.parse_args()
    device = start()
    rank, world_size = distributed.get_rank(), distributed.get_world_size()

    model = build(device)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    losses = torch.zeros(options.steps)
    for step in range(resume(model, optimizer, losses, options.out), options.steps):
        # The batch of a step depends on its number alone, so that a resumed run sees the same ones.
        first = torch.randint(
            VOCABULARY - LENGTH, (options.batch, 1), generator=torch.Generator().manual_seed(step)
        )
        tokens = (first + torch.arange(LENGTH)).chunk(world_size)[rank].to(device)
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().float()
        distributed.all_reduce(mean)
        losses[step] = mean.cpu() / world_size
        if (step + 1) % options.every == 0:
            save(model, optimizer, losses, options.out, step + 1)

    fastlora.save_pretrained(model, options.out / "adapter")  # all gather, process 0 writes
    if rank == 0:
        (options.out / "losses.json").write_text(json.dumps(losses.tolist()))
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; saved {options.out}")
    # All is written before anybody leaves. And torch's thread may still hold the last collective's tensor:
    # one that Python knows would crash a process that is already ending, a barrier's does not.
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
