"""fastlora: LoRA linear layers whose forward and backward each run as one fused Triton kernel."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from fastlora.autograd.function import lora_linear
from fastlora.config import LoRAConfig
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.model import transformers_saving
from fastlora.model.apply import apply_lora
from fastlora.model.find_layers import lora_layers
from fastlora.model.freezing import freeze, unfreeze
from fastlora.model.group_reports import GroupCounts, GroupReport
from fastlora.model.groups import group_counts, group_projections, ungroup_projections
from fastlora.routes.backend import BackendError, get_backend, set_backend
from fastlora.version import __version__

if TYPE_CHECKING:
    from fastlora.accounting.explain import explain
    from fastlora.accounting.explanation import Explanation
    from fastlora.adapter_files import (
        AdapterError,
        from_pretrained,
        hot_swap,
        load_adapter,
        load_pretrained,
        push_to_hub,
        save_adapter,
        save_pretrained,
    )
    from fastlora.autograd.flops import flop_formulas
    from fastlora.model.adapter_batch import adapter_batch, train_adapters
    from fastlora.model.adapters import add_adapter, delete_adapter
    from fastlora.model.combine import combine_adapters
    from fastlora.model.enabling import lora_disabled, set_lora_enabled
    from fastlora.model.initialize import initialize
    from fastlora.model.lora_plus import lora_plus_groups
    from fastlora.model.merging import merge_lora, unmerge_lora
    from fastlora.model.reference import reference_model
    from fastlora.model.remove import remove_lora
    from fastlora.model.report import ParameterReport, parameter_report
    from fastlora.model.switching import active_adapter, adapter_names, set_adapter, use_adapter
    from fastlora.reference_layers import LoRAParametrization, ReferenceLoRALinear
    from fastlora.tune_model import tune

__all__ = [
    "AdapterError",
    "BackendError",
    "Explanation",
    "FusedLoRALinear",
    "GroupCounts",
    "GroupReport",
    "LoRAConfig",
    "LoRAParametrization",
    "ParameterReport",
    "ReferenceLoRALinear",
    "__version__",
    "active_adapter",
    "adapter_batch",
    "adapter_names",
    "add_adapter",
    "apply_lora",
    "combine_adapters",
    "delete_adapter",
    "explain",
    "flop_formulas",
    "freeze",
    "from_pretrained",
    "get_backend",
    "group_counts",
    "group_projections",
    "hot_swap",
    "initialize",
    "load_adapter",
    "load_pretrained",
    "lora_disabled",
    "lora_layers",
    "lora_linear",
    "lora_plus_groups",
    "merge_lora",
    "parameter_report",
    "push_to_hub",
    "reference_model",
    "remove_lora",
    "save_adapter",
    "save_pretrained",
    "set_adapter",
    "set_backend",
    "set_lora_enabled",
    "train_adapters",
    "tune",
    "unfreeze",
    "ungroup_projections",
    "unmerge_lora",
    "use_adapter",
]

# What `apply_lora` does not need is loaded when one of these names is first asked for.
_LATER: Final = {
    "AdapterError": "adapter_files",
    "Explanation": "accounting.explanation",
    "LoRAParametrization": "reference_layers",
    "ParameterReport": "model.report",
    "ReferenceLoRALinear": "reference_layers",
    "active_adapter": "model.switching",
    "adapter_batch": "model.adapter_batch",
    "adapter_names": "model.switching",
    "add_adapter": "model.adapters",
    "combine_adapters": "model.combine",
    "delete_adapter": "model.adapters",
    "explain": "accounting.explain",
    "flop_formulas": "autograd.flops",
    "from_pretrained": "adapter_files",
    "hot_swap": "adapter_files",
    "initialize": "model.initialize",
    "load_adapter": "adapter_files",
    "load_pretrained": "adapter_files",
    "lora_disabled": "model.enabling",
    "lora_plus_groups": "model.lora_plus",
    "merge_lora": "model.merging",
    "parameter_report": "model.report",
    "push_to_hub": "adapter_files",
    "reference_model": "model.reference",
    "remove_lora": "model.remove",
    "save_adapter": "adapter_files",
    "save_pretrained": "adapter_files",
    "set_adapter": "model.switching",
    "set_lora_enabled": "model.enabling",
    "train_adapters": "model.adapter_batch",
    "tune": "tune_model",
    "unmerge_lora": "model.merging",
    "use_adapter": "model.switching",
}
_PACKAGES: Final = ("analysis", "lowrank", "parallel")

if not TYPE_CHECKING:  # a type checker would take it to mean that every name is there

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return import_module(f"fastlora.{name}")
        if name not in _LATER:
            raise AttributeError(f"module 'fastlora' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"fastlora.{_LATER[name]}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})


def _write_next_to_checkpoint(*saved: Any) -> None:
    from fastlora.adapter_files.save import write_next_to_checkpoint

    write_next_to_checkpoint(*saved)


transformers_saving.writers.append(_write_next_to_checkpoint)
