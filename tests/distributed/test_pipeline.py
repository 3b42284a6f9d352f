"""Two pipeline stages of torch.distributed.pipelining."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F

from fastlora.measuring.errors import assert_within_budget
from tests.distributed.processes import Processes, device
from tests.distributed.runs import assert_updates_alike, batches, net, optimizer_of, train, trained

two = Processes(2)
MICROBATCHES = 4


class Stage(nn.Module):
    """What one rank has of the net: a block, and the head on the last."""

    def __init__(self, model, rank):
        super().__init__()
        self.block = model.blocks[rank]
        self.head = model.head if rank == 1 else nn.Identity()

    def forward(self, x):
        return self.head(self.block(x))


def trains_as_one_process(schedule_of):
    rank = distributed.get_rank()
    stage = PipelineStage(Stage(net(), rank), rank, 2, device())
    schedule = schedule_of(stage, n_microbatches=MICROBATCHES, loss_fn=F.mse_loss)
    optimizer = optimizer_of(stage.submod)
    steps = []
    for batch in batches():
        optimizer.zero_grad()
        if rank == 0:
            schedule.step(batch.x)
            steps.append(batch.x.new_zeros(()))
        else:
            losses = []
            schedule.step(target=batch.target, losses=losses)
            steps.append(torch.stack(losses).mean().detach())
        optimizer.step()
    losses = torch.stack(steps)
    distributed.broadcast(losses, src=1)
    alone, exact = net(), net(torch.float64)
    alone_losses, exact_losses = train(alone, batches()), train(exact, batches(torch.float64))
    assert_within_budget("losses", losses, alone_losses, exact_losses)
    stages = (Stage(each, rank) for each in (alone, exact))
    assert_updates_alike(stage.submod, *map(trained, stages))


@pytest.mark.exhaustive
@two.test
def test_gpipe_trains_as_one_process_does(folder):
    trains_as_one_process(ScheduleGPipe)


@two.test
def test_one_forward_one_backward_trains_as_one_process_does(folder):
    trains_as_one_process(Schedule1F1B)
