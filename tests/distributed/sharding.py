"""A model sharded by FSDP2 over every process."""

from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.distributed.processes import device
from tests.distributed.runs import batches, net, parts, train


def everyone() -> DeviceMesh:
    return init_device_mesh(device().type, (distributed.get_world_size(),))


def sharded(model, **options):
    """Each block a group of its own, as is done with transformers; the head is the root's."""
    options.setdefault("mesh", everyone())
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def trained_in_parts(**options):
    model = sharded(net())
    return model, train(model, parts(batches()), **options)
