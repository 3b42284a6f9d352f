"""An adapter's dropout, held as code that looks for torch's own finds it."""

from __future__ import annotations

from typing import Any

from torch import nn

_MODULE = "lora_dropout"  # PEFT's name


class Dropping(nn.Module):
    """The part of an adapter that says how much is dropped.

    The probability is that of an nn.Dropout which is never called. Code that turns all dropout of a model off
    by `module.p = 0`, as TRL's trainers do, or by `module.eval()`, finds it there.
    """

    @property
    def dropout(self) -> float:
        """Probability in [0, 1) of dropping an entry of x on the low-rank branch, in training."""
        p: float = getattr(self._modules.get(_MODULE), "p", 0.0)
        return p

    @dropout.setter
    def dropout(self, p: float) -> None:
        module = self._modules.get(_MODULE)
        if not isinstance(module, nn.Dropout) and p != 0:
            module = self._modules[_MODULE] = nn.Dropout().train(self.training)
        if isinstance(module, nn.Dropout):
            module.p = p  # not by its constructor, which takes 1: the forward pass names what is unsound

    def dropout_now(self, training: bool) -> float:
        """The probability that applies in a layer that is in training or not."""
        module = self._modules.get(_MODULE)
        if module is None or not training or not module.training:
            return 0.0
        p: float = getattr(module, "p", 0.0)  # somebody may have put an nn.Identity in its place
        return p

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As nn.Module's; up to version 0.2 the dropout was a plain attribute."""
        rest = {key: value for key, value in state.items() if key != "dropout"}
        super().__setstate__(rest)  # type: ignore[no-untyped-call]
        if "dropout" in state:
            self.dropout = state["dropout"]
