"""Keeps DistributedDataParallel in step with a model whose trained parameters change.

Its reducer averages the gradients of the parameters that were trained when the wrapper was made. A parameter
that is trained only later would silently get different gradients in each process. So an operation that
changes what is trained leaves a note on the wrappers around the model. At the next forward pass that records
gradients, which all processes reach together, a wrapper with a note gets a new reducer, if the trained
parameters differ by then. If one process switches adapters to evaluate and then switches back, nothing is
sent.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed, nn

from fastlora.layer.commits import Commit

_NOTE = "fastlora"


def note_change(model: nn.Module, changing: Commit) -> None:
    """Leave a note on the wrappers in and around a model; call this before its trained parameters change.

    Wrappers around the model are found in the garbage collector's list, if torch.distributed is initialized.
    """
    for wrapper in _wrappers(model):
        hooks: Any = wrapper._forward_pre_hooks
        if _NOTE not in hooks:
            changing.put(hooks, _NOTE, _Note(wrapper))


def _wrappers(model: nn.Module) -> Iterator[nn.parallel.DistributedDataParallel]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    inside = set(model.modules())
    # There are hundreds of thousands of objects, and issubclass would ask Python code about each.
    kinds: dict[type, bool] = {}
    for found in gc.get_objects():
        kind = type(found)
        if kind not in kinds:
            kinds[kind] = nn.parallel.DistributedDataParallel in kind.__mro__
        if not kinds[kind]:
            continue
        # A wrapper that another thread is just constructing may have no modules yet.
        if "_modules" in vars(found) and not inside.isdisjoint(found.modules()):
            yield found


class _Note:
    """A forward pre-hook of a wrapper, which removes itself at the first pass that records gradients.

    Attributes:
        reduced: The parameters in the wrapper's reducer.
    """

    def __init__(self, wrapper: nn.Module) -> None:
        self.reduced = _trained(wrapper)

    def __call__(self, wrapper: Any, inputs: object) -> None:
        now = _trained(wrapper)
        if not torch.is_grad_enabled() or not now:
            return
        if set(map(id, now)) != set(map(id, self.reduced)):
            _renew_reducer(wrapper)
        del wrapper._forward_pre_hooks[_NOTE]


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _renew_reducer(wrapper: Any) -> None:
    """Make a new reducer, as the wrapper's constructor and __setstate__ do; all processes must call it.

    As in the constructor, the first process sends its trained parameters to the others: an adapter that was
    added after wrapping has different random values in each process.

    Raises:
        RuntimeError: If the wrapper has communication state for individual parameters.
    """
    if wrapper._use_python_reducer or wrapper.mixed_precision is not None or wrapper._delay_all_reduce_params:
        raise RuntimeError(
            "DistributedDataParallel must be made anew now that other parameters are trained; with "
            "mixed_precision, delay_all_reduce_named_params or the python reducer it cannot follow"
        )
    parameters, sparse = wrapper._build_params_for_reducer()
    c10d: Any = distributed
    c10d._verify_params_across_processes(wrapper.process_group, parameters, None)
    values = [parameter.detach() for parameter in parameters]
    c10d._broadcast_coalesced(wrapper.process_group, values, wrapper.broadcast_bucket_size, 0)
    wrapper.reducer._remove_autograd_hooks()
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    wrapper._ddp_init_helper(parameters, sparse, names, wrapper.static_graph)
    wrapper._has_rebuilt_buckets = False
    if wrapper.static_graph:
        wrapper._static_graph_delay_allreduce_enqueued = False
        wrapper.reducer._set_static_graph()
        wrapper.logger._set_static_graph()
    for hook, state in wrapper._comm_hooks:
        c10d._register_comm_hook(wrapper.reducer, state, hook)
