"""fastlora: LoRA linear layers whose forward and backward each run as one fused Triton kernel."""

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
from fastlora.autograd.function import lora_linear
from fastlora.config import LoRAConfig
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.model.adapter_batch import adapter_batch, train_adapters
from fastlora.model.adapters import add_adapter, delete_adapter
from fastlora.model.apply import apply_lora
from fastlora.model.combine import combine_adapters
from fastlora.model.enabling import lora_disabled, set_lora_enabled
from fastlora.model.find_layers import lora_layers
from fastlora.model.freezing import freeze, unfreeze
from fastlora.model.group_reports import GroupCounts, GroupReport
from fastlora.model.groups import group_counts, group_projections, ungroup_projections
from fastlora.model.initialize import initialize
from fastlora.model.lora_plus import lora_plus_groups
from fastlora.model.merging import merge_lora, unmerge_lora
from fastlora.model.remove import remove_lora
from fastlora.model.report import ParameterReport, parameter_report
from fastlora.model.switching import active_adapter, adapter_names, set_adapter, use_adapter
from fastlora.reference_layers import LoRAParametrization, ReferenceLoRALinear
from fastlora.routes.backend import BackendError, get_backend, set_backend
from fastlora.tune_model import tune
from fastlora.version import __version__

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
