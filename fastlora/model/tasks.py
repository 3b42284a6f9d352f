"""The task of a Transformers model, and the new head for it: PEFT's `task_type`.

The head of a `...ForSequenceClassification` or a similar class has random initial weights. So it is trained
in full and saved with the updates, whatever the targets are, as in PEFT. PEFT must be told the task; here it
is also inferred from the model's class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from torch import nn

from fastlora.arguments import shown
from fastlora.config import LoRAConfig
from fastlora.config_values import check_task_name
from fastlora.layer.commits import Commit
from fastlora.model.find_layers import LORA_LAYERS
from fastlora.model.modules_to_save import TASK, check_trainable, saved_modules
from fastlora.model.name_matching import listed
from fastlora.model.wrappers import module_names, unwrapped
from fastlora.warning import warn

# Ends of the names of heads, from PEFT's models (0.21, peft_model.py): "classifier" also matches
# "pre_classifier".
_HEADS: Final = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
# Parts of class names, and their tasks; PEFT has no task for the last.
_CLASSES: Final = {
    "SequenceClassification": "SEQ_CLS",
    "TokenClassification": "TOKEN_CLS",
    "QuestionAnswering": "QUESTION_ANS",
    "MultipleChoice": None,
    "ImageClassification": None,
    "VideoClassification": None,
    "AudioClassification": None,
    "AudioFrameClassification": None,
    "SemanticSegmentation": None,
}
_FOR: Final = rf"For({'|'.join(_CLASSES)})(WithTeacher)?$"


def remember_task(model: nn.Module, task: str | None, changing: Commit) -> None:
    """Remember the task that a config names, for adapter files, until LoRA is removed."""
    if task is not None:
        changing.put(vars(unwrapped(model)), TASK, task)


def task_of(model: nn.Module, asked: str | None) -> str | None:
    """The `task_type` for a model's adapter_config.json; None if none is known.

    A task inferred from the class counts only if its head is saved, because PEFT then expects it in the file.

    Args:
        model: A model with LoRA layers, wrapped or not.
        asked: The task that the caller wants; None infers it.

    Raises:
        ValueError: If `asked` is a task whose head is in the model but would not be saved.
    """
    inner = unwrapped(model)
    if asked is not None:
        asked = check_task_name(asked)
    check_task(model, asked)
    task = asked or vars(inner).get(TASK)
    if task is None:
        known = _known_class(inner)
        task = None if known is None else _CLASSES[known]
        # PEFT's model class for a task passes input_ids, which models for images and audio do not take.
        if task is None or getattr(inner, "main_input_name", None) != "input_ids":
            return None
        return task if task_heads(inner, None) and not _unsaved_heads(inner, task) else None
    return str(task)


def check_task(model: nn.Module, task: str | None) -> None:
    """Raise ValueError if the task's head is in the model but is not saved with the updates."""
    unsaved = _unsaved_heads(unwrapped(model), task) if task is not None else []
    if unsaved:
        raise ValueError(
            f"task_type {shown(task)} needs its head in the file, where PEFT looks for it, and "
            f"{listed(unsaved)} would not be saved (apply_lora with this task_type, or with modules_to_save)"
        )


def task_heads(model: nn.Module, task: str | None) -> dict[nn.Module, str]:
    """{module: name} of a model's new modules for its task; of nested ones, the outermost.

    They are those that PEFT trains for the task, and the children of the class other than its base model.

    Args:
        model: Any module; its submodules are searched too.
        task: PEFT's name of the task; None infers it from the class. FEATURE_EXTRACTION and language models
            have no such head.
    """
    names = {module: own[0] for module, own in module_names(model).items()}
    if task is not None and task not in _HEADS:
        return {}
    found = set(_heads_by_name(unwrapped(model), task)) if task is not None else set()
    for module in names:
        known = _known_class(module)
        if known is not None:
            found |= {*_children_except_base(module), *_heads_by_name(module, _CLASSES[known] or "SEQ_CLS")}
    inside = {inner for head in found for inner in head.modules() if inner is not head}
    return {module: name for module, name in names.items() if module in found - inside}


def heads_to_train(model: nn.Module, config: LoRAConfig) -> list[nn.Module]:
    """The heads that `apply_lora` trains in full for this config; the model is not changed.

    A head that has LoRA layers already is not included. If a task is known but no head is found, a warning
    says so.

    Raises:
        ValueError: If a head shares a weight with the rest of the model, or has LoRA layers while the config
            names the task.
    """
    heads = task_heads(model, config.task_type)
    if config.task_type is None:
        heads = {head: name for head, name in heads.items() if not _has_lora(head)}
    for head, name in heads.items():
        check_trainable(model, name, head)
    known = [module for module in model.modules() if _known_class(module) is not None]
    expected = config.task_type in _HEADS or (config.task_type is None and known)
    if expected and not task_heads(model, config.task_type) and config.modules_to_save is None:
        kind = type(known[0] if known else unwrapped(model)).__name__
        warn(
            f"no head is known by its name in this {kind}; one that is new must be named in modules_to_save, "
            "or is neither trained in full nor saved (task_type='FEATURE_EXTRACTION' if there is none)",
        )
    return list(heads)


def _known_class(module: nn.Module) -> str | None:
    """The "For..." part of a Transformers model's class name, if the class adds a new head; else None."""
    classes = type(module).__mro__
    if not any(cls.__name__ == "PreTrainedModel" for cls in classes):
        return None
    found = (re.search(_FOR, cls.__name__) for cls in classes)
    return next((match[1] for match in found if match), None)


def _heads_by_name(module: nn.Module, task: str) -> list[nn.Module]:
    ends = _HEADS.get(task, ())
    return [
        inner
        for name, inner in module.named_modules()
        if name and name.endswith(ends) and _has_numbers(inner)
    ]


def _children_except_base(module: nn.Module) -> Iterator[nn.Module]:
    """The children of a task's model, except the base model that its class names."""
    base = module._modules.get(str(getattr(module, "base_model_prefix", "")))
    if base is not None:
        yield from (each for each in module.children() if each is not base and _has_numbers(each))


def _unsaved_heads(model: nn.Module, task: str) -> list[str]:
    kept = {inner for _, module in saved_modules(model) for inner in module.modules()}
    names = module_names(model)
    return [names[head][0] for head in _heads_by_name(model, task) if head not in kept]


def _has_lora(module: nn.Module) -> bool:
    return any(isinstance(inner, LORA_LAYERS) for inner in module.modules())


def _has_numbers(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
