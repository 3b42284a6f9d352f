"""What a change that fails must leave as it was, and a way to make it fail."""

from fastlora import lora_layers


def snapshot(model):
    """All that a refused change must leave as it was."""
    modules = [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
    tensors = [(name, id(p), p.requires_grad, p._version) for name, p in model.named_parameters()]
    switches = [(layer.enabled, layer.merged) for _, layer in lora_layers(model)]
    return modules, tensors, switches


class InjectedError(RuntimeError):
    pass


def failing_at(call, function):
    """`function`, but the call of this number (from 1) raises."""
    calls = iter(range(1, 100))

    def wrapped(*args, **kwargs):
        if next(calls) == call:
            raise InjectedError
        return function(*args, **kwargs)

    return wrapped
