"""DistributedDataParallel over LoRA layers."""

import pytest
import torch
from torch import distributed
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import fastlora
from fastlora.parallel import check_all_trained
from tests.distributed.processes import Processes
from tests.distributed.runs import (
    assert_trained_alike,
    assert_updates_alike,
    averaged,
    batches,
    loss_of,
    net,
    optimizer_of,
    parts,
    train,
    trained,
)

two, four = Processes(2), Processes(4)


def test_a_layer_that_takes_no_part_is_named_with_the_reason():
    from tests.models import adapted, mlp

    model = adapted(mlp())
    fastlora.lora_layers(model)
    model[0].enabled = False
    model(torch.randn(2, 6)).sum().backward()
    with pytest.raises(ValueError, match=r"'0' \(disabled"):
        check_all_trained(model)


def trains_as_one_process():
    model = DistributedDataParallel(net())
    losses = train(model, parts(batches()))
    assert_trained_alike(model, averaged(losses))


@two.test
def test_two_processes_train_as_one_does(folder):
    trains_as_one_process()


@pytest.mark.exhaustive
@four.test
def test_four_processes_train_as_one_does(folder):
    trains_as_one_process()


@two.test
def test_a_static_graph_works(folder):
    model = DistributedDataParallel(net(), static_graph=True)
    assert_trained_alike(model, averaged(train(model, parts(batches()))))


@two.test
def test_gradients_that_are_views_of_buckets_work(folder):
    model = DistributedDataParallel(net(), gradient_as_bucket_view=True)
    assert_trained_alike(model, averaged(train(model, parts(batches()))))


@two.test
def test_gradients_accumulate_without_being_reduced(folder):
    model = DistributedDataParallel(net())
    mine = list(parts(batches()))
    with model.no_sync():
        for batch in mine[:-1]:
            loss_of(model, batch).backward()
    before = model.module.head.lora_B.grad.clone()
    everywhere = [torch.empty_like(before) for _ in range(2)]
    distributed.all_gather(everywhere, before)
    assert not torch.equal(*everywhere)  # so far each rank has its own
    loss_of(model, mine[-1]).backward()
    optimizer_of(model).step()

    def alone(dtype):
        single = net(dtype)
        for batch in batches(dtype):
            loss_of(single, batch).backward()
        optimizer_of(single).step()
        return trained(single)

    assert_updates_alike(model, alone(torch.float32), alone(torch.float64))


@two.test
def test_ranks_with_fewer_batches_are_joined(folder):
    model = DistributedDataParallel(net())
    mine = list(parts(batches()))[distributed.get_rank() :]
    train(model, mine, within=Join([model]))
    everywhere = [None, None]
    distributed.all_gather_object(everywhere, {name: t.tolist() for name, t in trained(model).items()})
    assert everywhere[0] == everywhere[1]


@two.test
def test_dropout_differs_between_ranks_that_are_seeded_apart_and_the_updates_stay_equal(folder):
    torch.manual_seed(distributed.get_rank())
    model = DistributedDataParallel(net(dropout=0.5))
    train(model, batches())
    everywhere = [None, None]
    distributed.all_gather_object(everywhere, {name: t.tolist() for name, t in trained(model).items()})
    assert everywhere[0] == everywhere[1]


@two.test
def test_a_disabled_layer_is_named_after_the_first_backward_pass(folder):
    model = DistributedDataParallel(net())
    model.module.blocks[1].up.enabled = False
    loss_of(model, batches()[0]).backward()
    with pytest.raises(ValueError, match=r"'blocks\.1\.up' \(disabled"):
        check_all_trained(model)


@two.test
def test_a_frozen_adapter_needs_no_search_for_unused_parameters(folder):
    model = net()
    fastlora.add_adapter(model, "other", fastlora.LoRAConfig(r=2))
    wrapped = DistributedDataParallel(model)
    assert_trained_alike(wrapped, averaged(train(wrapped, parts(batches()))))
