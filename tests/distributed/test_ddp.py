"""DistributedDataParallel over LoRA layers."""

from importlib.util import find_spec

import pytest
import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import fastlora
from fastlora.parallel import check_all_trained
from tests.distributed.processes import Processes
from tests.distributed.runs import (
    IN,
    OUT,
    assert_other_trained_alike,
    assert_trained_alike,
    assert_updates_alike,
    averaged,
    batches,
    loss_of,
    net,
    net_of_two,
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


def packed_net():
    """Two 4-bit layers with an update that is not zero: the same numbers every time."""
    from tests.models import adapted
    from tests.packed import net as packed

    with torch.random.fork_rng():
        torch.manual_seed(1)
        return adapted(packed(IN, 32, OUT), r=3, alpha=0.3)


if find_spec("bitsandbytes") is not None:  # a body that skips would end its process

    @pytest.mark.exhaustive
    @four.test
    def test_four_processes_train_a_packed_base_as_one_does(folder):
        model, alone = DistributedDataParallel(packed_net()), packed_net()
        train(model, parts(batches()))
        train(alone, batches())
        torch.testing.assert_close(trained(model), trained(alone))


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


def other_of(model):
    """{name: tensor} of all adapters called "other"."""
    return {name: p for name, p in model.named_parameters() if ".other." in name}


@two.test
def test_an_adapter_put_in_use_after_wrapping_is_trained_in_step(folder):
    for static_graph, chosen in ((False, lambda wrapped: wrapped), (True, lambda wrapped: wrapped.module)):
        wrapped = DistributedDataParallel(net_of_two(), static_graph=static_graph)
        train(wrapped, parts(batches()))
        fastlora.set_adapter(chosen(wrapped), "other")
        assert_other_trained_alike(wrapped, averaged(train(wrapped, parts(batches()))))
        before = wrapped.reducer
        fastlora.set_adapter(chosen(wrapped), "default")
        fastlora.set_adapter(chosen(wrapped), "other")
        loss_of(wrapped, batches()[0])
        assert wrapped.reducer is before
        assert not wrapped._forward_pre_hooks


@two.test
def test_an_adapter_made_after_wrapping_starts_and_trains_alike(folder):
    wrapped = DistributedDataParallel(net())
    torch.manual_seed(distributed.get_rank())
    fastlora.add_adapter(wrapped.module, "other", fastlora.LoRAConfig(r=2))
    fastlora.set_adapter(wrapped.module, "other")
    train(wrapped, parts(batches()))
    everywhere = [None, None]
    distributed.all_gather_object(everywhere, {name: p.tolist() for name, p in other_of(wrapped).items()})
    assert everywhere[0] == everywhere[1]


@two.test
def test_what_is_unfrozen_after_wrapping_is_trained_in_step(folder):
    wrapped = DistributedDataParallel(net(target_modules=["up"]))
    train(wrapped, parts(batches()))
    fastlora.unfreeze(wrapped)
    train(wrapped, parts(batches()))
    everywhere = [None, None]
    distributed.all_gather_object(everywhere, wrapped.module.head.weight.tolist())
    assert everywhere[0] == everywhere[1]


@two.test
def test_one_process_may_switch_for_itself_and_back(folder):
    wrapped = DistributedDataParallel(net_of_two())
    train(wrapped, parts(batches()[:1]))
    if distributed.get_rank() == 0:
        with fastlora.use_adapter(wrapped.module, "other"), torch.no_grad():
            wrapped.module(batches()[0].x)
    train(wrapped, parts(batches()[1:]))
    everywhere = [None, None]
    distributed.all_gather_object(everywhere, {name: t.tolist() for name, t in trained(wrapped).items()})
    assert everywhere[0] == everywhere[1]


@two.test
def test_a_hook_that_compresses_gradients_stays(folder):
    wrapped, met = DistributedDataParallel(net_of_two()), []

    def hook(state, bucket):
        state.append(bucket.index())
        return default_hooks.allreduce_hook(None, bucket)

    wrapped.register_comm_hook(met, hook)
    fastlora.set_adapter(wrapped, "other")
    assert_other_trained_alike(wrapped, averaged(train(wrapped, parts(batches()))))
    assert met
