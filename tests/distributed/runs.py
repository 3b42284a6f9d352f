"""One small training run, in one process or spread over several, and what makes two of them equal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from fastlora import LoRAConfig, add_adapter, apply_lora, set_adapter
from fastlora.measuring.errors import assert_within_budget
from tests.distributed.processes import device
from tests.models import with_update
from tests.several_adapters import filled

STEPS = 3
ROWS = 16  # of a whole batch; a multiple of every world size
IN, OUT = 12, 8


class Batch(NamedTuple):
    """x [rows, IN] and what the net should answer [rows, OUT]."""

    x: Tensor
    target: Tensor

    def part(self, index: int, count: int) -> Batch:
        """One of `count` equal parts."""
        return Batch(self.x.chunk(count)[index], self.target.chunk(count)[index])


class Block(nn.Module):
    """x + up -> GELU -> down, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(IN, 16), nn.Linear(16, IN)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Net(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(IN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net(dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """The net with an update that is not zero: the same numbers every time, on this rank's device."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = with_update(apply_lora(Net(), LoRAConfig(**{"r": 3, "alpha": 0.3, **options})))
    return model.to(dtype).to(device())


def net_of_two(dtype: torch.dtype = torch.float32) -> nn.Module:
    """The net with "default", in use, and with "other", in some of the layers; neither is zero."""
    model = net()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        add_adapter(model, "other", LoRAConfig(r=2, target_modules=["up", "head"]))
        filled(model, "other")
    return model.to(dtype)


def batches(dtype: torch.dtype = torch.float32) -> list[Batch]:
    """Those of a run: the same numbers every time."""
    generator = torch.Generator().manual_seed(2)
    made = [torch.randn(STEPS, ROWS, columns, generator=generator) for columns in (IN, OUT)]
    x, target = (tensor.to(device(), dtype) for tensor in made)
    return [Batch(*pair) for pair in zip(x, target, strict=True)]


def parts(whole: Iterable[Batch], index: int | None = None, count: int | None = None) -> Iterator[Batch]:
    """This rank's part of each batch, or part `index` of `count`."""
    index = distributed.get_rank() if index is None else index
    count = distributed.get_world_size() if count is None else count
    return (batch.part(index, count) for batch in whole)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error, in the dtype of the target."""
    return F.mse_loss(model(batch.x).to(batch.target.dtype), batch.target)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Momentum, so that a checkpoint without the optimizer's state shows."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


def train(
    model: nn.Module,
    given: Iterable[Batch],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    within: AbstractContextManager[object] | None = None,
) -> Tensor:
    """Train; the loss of each step on this rank's part."""
    optimizer = optimizer or optimizer_of(model)
    losses = []
    with within or nullcontext():
        for batch in given:
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses)


def averaged(losses: Tensor) -> Tensor:
    """The mean over the ranks."""
    total = losses.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def whole(tensor: Tensor) -> Tensor:
    """The tensor on every rank, whether it was sharded or not."""
    gather = getattr(tensor.detach(), "full_tensor", None)
    return tensor.detach() if gather is None else gather()


def trained(model: nn.Module) -> dict[str, Tensor]:
    """{name: whole tensor} of all that is trained; wrappers leave no trace in the names."""
    return {
        name.removeprefix("module."): whole(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def assert_trained_alike(model: nn.Module, losses: Tensor, **options: Any) -> None:
    """Fail unless losses and updates are as near to fp64's as those of the same run in one process."""
    alone, exact = net(**options), net(torch.float64, **options)
    alone_losses, exact_losses = train(alone, batches()), train(exact, batches(torch.float64))
    assert exact_losses[-1] < exact_losses[0]  # a run that diverges, or stands still, compares nothing
    assert_within_budget("losses", losses, alone_losses, exact_losses)
    assert_updates_alike(model, trained(alone), trained(exact))


def assert_other_trained_alike(model: nn.Module, losses: Tensor) -> None:
    """The same where "other" of `net_of_two` was put in use before a whole run."""
    alone, exact = net_of_two(), net_of_two(torch.float64)
    for each in (alone, exact):
        set_adapter(each, "other")
    alone_losses, exact_losses = train(alone, batches()), train(exact, batches(torch.float64))
    assert_within_budget("losses", losses, alone_losses, exact_losses)
    assert_updates_alike(model, trained(alone), trained(exact))


def assert_updates_alike(model: nn.Module, alone: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Fail unless the updates of a model are as near to fp64's as those of one process."""
    ours = trained(model)
    assert ours.keys() == alone.keys()
    for name, tensor in ours.items():
        assert_within_budget(name, tensor, alone[name], exact[name])
