"""The memory that full fine-tuning and LoRA take, counted on a model, which may be without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from fastlora.accounting.activations import saved_bytes
from fastlora.config import LoRAConfig
from fastlora.model.apply import apply_lora
from fastlora.tables import Part, Shown, Table, decimal_size

# Adam's: the running means of the gradient and of its square.
_MOMENTS = 2


@dataclass(frozen=True)
class Needs:
    """What one way of training needs; all but `trainable` in bytes.

    Attributes:
        trainable: Number of trained parameters.
        saved: On disk: the tensors that a trained model needs in addition to the base. A safetensors file has
            about a hundred bytes more for each tensor.
        weights: All parameters, including A and B.
        gradients: Gradients of the trained parameters, in their dtypes.
        optimizer: Adam's two moments of the trained parameters, in their dtypes, as in torch.optim.Adam.
        activations: What one forward pass saves for the backward pass, without the loss.
    """

    trainable: int
    saved: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes of weights, gradients, optimizer and activations; temporaries and the loss come on top."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Budget(Shown):
    """Full fine-tuning against LoRA; `str()` of it is a table.

    Attributes:
        parameters: Number of parameters of the model without LoRA.
        full: What training all of them needs.
        lora: What training with LoRA needs.
    """

    parameters: int
    full: Needs
    lora: Needs

    def as_json(self) -> dict[str, Any]:
        """Numbers by name, the totals included."""
        ways = {"full": self.full, "lora": self.lora}
        return {
            "parameters": self.parameters,
            **{way: {**asdict(needs), "total": needs.total} for way, needs in ways.items()},
        }

    def parts(self) -> Iterator[Part]:
        """One table."""
        full, lora = self.full, self.lora
        rows: list[tuple[str, int, int, Callable[[int], str]]]
        rows = [("trained parameters", full.trainable, lora.trainable, "{:,}".format)]
        rows += [(name, part(full), part(lora), decimal_size) for name, part in _BYTES.items()]
        yield Table(
            ("", "full", "LoRA", "full / LoRA"),
            [(name, shown(of), shown(to), _ratio(of, to)) for name, of, to, shown in rows],
        )


def training_budget(model: nn.Module, config: LoRAConfig, forward: Callable[[nn.Module], object]) -> Budget:
    """Count what training needs without LoRA; then call `apply_lora` on the model and count again.

    It works on any device. Under torch's FakeTensorMode, in which `meta_models` builds models, no memory is
    allocated and nothing is computed.

    Args:
        model: A model without LoRA; afterwards it has LoRA.
        config: Which layers, and what update.
        forward: Runs one training batch through the model and returns the result.

    Raises:
        TypeError: As `apply_lora`.
        ValueError: As `apply_lora`.
    """
    model.requires_grad_(True).train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    full = _needs(model, forward)
    model = apply_lora(model, config)
    return Budget(parameters, full, _needs(model, forward))


def _needs(model: nn.Module, forward: Callable[[nn.Module], object]) -> Needs:
    every = list(model.parameters())
    trained = [parameter for parameter in every if parameter.requires_grad]
    return Needs(
        trainable=sum(parameter.numel() for parameter in trained),
        saved=_bytes(trained),
        weights=_bytes(every),
        gradients=_bytes(trained),
        optimizer=_MOMENTS * _bytes(trained),
        activations=saved_bytes(lambda: forward(model), (*every, *model.buffers())),
    )


_BYTES: dict[str, Callable[[Needs], int]] = {
    "saved after training": lambda needs: needs.saved,
    "weights": lambda needs: needs.weights,
    "gradients": lambda needs: needs.gradients,
    "optimizer (Adam)": lambda needs: needs.optimizer,
    "saved activations": lambda needs: needs.activations,
    "memory, all four": lambda needs: needs.total,
}


def _ratio(full: int, lora: int) -> str:
    if not lora:
        return ""
    ratio = full / lora
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2f}"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)
