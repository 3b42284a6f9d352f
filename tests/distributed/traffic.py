"""What processes send each other."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_LOCAL = ("wait_tensor", "_wrap_tensor")


class Traffic(TorchDispatchMode):
    """Lists (collective, elements) for all that is sent within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, int]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = op.name().partition("::")
        if space in ("c10d", "_c10d_functional") and not name.startswith(_LOCAL):
            tensor = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
            self.sent.append((name.partition(".")[0].replace("_", ""), tensor.numel()))
        return op(*args, **(kwargs or {}))
