"""The memory that full fine-tuning and LoRA take, counted on a model, which may be without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from fastlora.accounting.activations import saved_bytes
from fastlora.arguments import check_choice
from fastlora.config import LoRAConfig
from fastlora.formats.registry import FORMATS, format_of
from fastlora.layer.base_weights import like_weight
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.model.all_linear import output_heads
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
        weights: All parameters, including A and B; of a packed W the packed bytes with LoRA, and in full
            fine-tuning those of the plain W that would have to be trained.
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


def training_budget(
    model: nn.Module,
    config: LoRAConfig,
    forward: Callable[[nn.Module], object],
    *,
    base: str | None = None,
) -> Budget:
    """Count what training needs without LoRA; then call `apply_lora` on the model and count again.

    It works on any device. Under torch's FakeTensorMode, in which `meta_models` builds models, no memory is
    allocated and nothing is computed. Packed layers of other libraries count as plain ones in full
    fine-tuning.

    Args:
        model: A model without LoRA; afterwards it has LoRA.
        config: Which layers, and what update.
        forward: Runs one training batch through the model and returns the result.
        base: A packed format (`fastlora.formats`) that LoRA's base is counted in though the model's layers
            are plain: each nn.Linear but the output head, as loaders pack them.

    Raises:
        TypeError: As `apply_lora`.
        ValueError: As `apply_lora`; or if `base` is unknown.
    """
    format = None if base is None else FORMATS[check_choice("base", base, FORMATS)]
    model.train()
    plain = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with _as_if_plain(model):
        model.requires_grad_(True)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        full = _needs(model, forward)
    model = apply_lora(model, config)
    lora = _needs(model, forward)
    if format is not None:
        heads = output_heads(model)
        shapes = [(one.out_features, one.in_features, one.weight) for one in plain if one not in heads]
        saving = sum(_bytes([weight]) - format.packed_bytes(N, K) for N, K, weight in shapes)
        lora = replace(lora, weights=lora.weights - saving)
    return Budget(parameters, full, lora)


@contextmanager
def _as_if_plain(model: nn.Module) -> Iterator[None]:
    """Put plain layers without memory in the place of packed ones for a `with` block."""
    places = [
        (module._modules, name, child)
        for module in model.modules()
        for name, child in module._modules.items()
        if child is not None and format_of(child) is not None
    ]
    try:
        for modules, name, packed in places:
            modules[name] = _plain_like(packed)
        yield
    finally:
        for modules, name, packed in places:
            modules[name] = packed


def _plain_like(packed: Any) -> nn.Linear:
    plain = nn.Linear(packed.in_features, packed.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(like_weight(packed))
    if packed.bias is not None:
        plain.bias = nn.Parameter(packed.bias.detach())
    return plain


def _needs(model: nn.Module, forward: Callable[[nn.Module], object]) -> Needs:
    every = list(model.parameters())
    trained = [parameter for parameter in every if parameter.requires_grad]
    beside = [tensor for layer in _packed(model) for tensor in layer.base.tensors]
    known = {each.untyped_storage()._cdata for each in every}
    scales = [tensor for tensor in beside if tensor.untyped_storage()._cdata not in known]
    return Needs(
        trainable=sum(parameter.numel() for parameter in trained),
        saved=_bytes(trained),
        weights=_bytes(every) + _bytes(scales),
        gradients=_bytes(trained),
        optimizer=_MOMENTS * _bytes(trained),
        activations=saved_bytes(lambda: forward(model), (*every, *beside, *model.buffers())),
    )


def _packed(model: nn.Module) -> list[QuantizedLoRALinear]:
    return [module for module in model.modules() if isinstance(module, QuantizedLoRALinear)]


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
