"""Which child modules of one parent are given the same x, by the names that model families use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from torch import nn

from fastlora.arguments import shown

AUTO: Final = "auto"

# Llama, Mistral, Qwen, Gemma, Phi, OPT, Whisper, CLIP, ViT; BERT, RoBERTa, ViT; T5; DistilBERT; Meta's Llama;
# diffusers.
_ATTENTION: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("wq", "wk", "wv"),
    ("to_q", "to_k", "to_v"),
    ("add_q_proj", "add_k_proj", "add_v_proj"),
)
_OTHERS: Final = (
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
    ("w1", "w3"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
)

# Parents, by the ends of their names, in which the query is given another x than key and value.
_CROSS: Final = (
    "EncDecAttention",
    "encoder_attn",
    "crossattention.self",
    "crossattention",
    "cross_attn",
    "attn2",
)

# Single layers that hold several such projections: nothing is left to be grouped.
FUSED: Final = frozenset(
    ("qkv_proj", "gate_up_proj", "query_key_value", "qkv", "Wqkv", "c_attn", "qkv_lin", "fc_in_gate")
)


def tuples_for(parent: str, groups: Sequence[tuple[str, ...]] | None) -> list[tuple[str, ...]]:
    """The names that share x among the children of a parent of this name; `groups` of None means "auto"."""
    if groups is not None:
        return list(groups)
    crossed = any(parent == end or parent.endswith(f".{end}") for end in _CROSS)
    return [*(names[1:] if crossed else names for names in _ATTENTION), *_OTHERS]


def check_groups(groups: object) -> list[tuple[str, ...]] | None:
    """The user's tuples of names; None for "auto".

    Raises:
        TypeError: If it is neither "auto" nor a sequence of sequences of names.
        ValueError: If one has fewer than two names, or a name twice.
    """
    if isinstance(groups, str) and groups == AUTO:
        return None
    if isinstance(groups, (str, bytes)) or not isinstance(groups, Sequence) or not groups:
        raise TypeError(f"groups must be 'auto' or a sequence of tuples of names; got {shown(groups)}")
    found = []
    for names in groups:
        if isinstance(names, (str, bytes)) or not isinstance(names, Sequence):
            raise TypeError(f"each of groups must be a tuple of names; got {shown(names)}")
        if not all(isinstance(name, str) and name for name in names):
            raise TypeError(f"each of groups must hold names; got {shown(names)}")
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"each of groups must hold two different names or more; got {shown(names)}")
        found.append(tuple(names))
    return found


def children(
    parent: nn.Module, names: Sequence[str], found: Mapping[nn.Module, str]
) -> list[tuple[str, nn.Module]]:
    """(name, module) of those children, or children of children for names with dots, that are in `found`."""
    modules = []
    for name in names:
        module: nn.Module | None = parent
        for part in name.split("."):
            module = None if module is None else module._modules.get(part)
        if module is not None and module in found:
            modules.append((name, module))
    return modules
