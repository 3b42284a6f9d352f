"""`resize_token_embeddings` of Transformers models with LoRA: refused where it would lose what is trained.

It puts a new head, a plain one, in the place of the old one, and gives an embedding other rows without its A.
"""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from fastlora.layer.commits import exclusive
from fastlora.layer.token_rows import CHILD as ROWS
from fastlora.model.find_layers import LORA_LAYERS
from fastlora.model.modules_to_save import saved_modules
from fastlora.model.name_matching import listed
from fastlora.model.versions import CHILD
from fastlora.model.wrappers import module_names

NAME: Final = "resize_token_embeddings"


class ResizeTokenEmbeddings:
    """Replaces a model's `resize_token_embeddings`, as an attribute that is copied and pickled with it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @exclusive
    def __call__(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        """As the class's method.

        Raises:
            ValueError: If the embeddings or the head have LoRA or trained rows, the head is a module to save,
                or the embeddings have a version for each adapter.
        """
        model: Any = self.model
        rows = model.get_input_embeddings().weight.shape[0]
        wanted = new_num_tokens or rows
        if pad_to_multiple_of:
            wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
        if wanted != rows and (lost := self._lost()):
            raise ValueError(
                f"{NAME} must come before apply_lora where it changes what is trained; {listed(lost)} would "
                "lose it (resize the plain model; remove_lora(model, merge=True) makes it one)"
            )
        return getattr(type(model), NAME)(model, new_num_tokens, pad_to_multiple_of, *args, **options)

    def _lost(self) -> list[str]:
        """The names of the modules that resizing would take what is trained from."""
        model: Any = self.model
        names, marked = module_names(model), {module for _, module in saved_modules(model)}
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        lost = [
            each
            for each in (embeddings, head)
            if isinstance(each, LORA_LAYERS) or (each is not None and {CHILD, ROWS} & each._modules.keys())
        ]
        if head in marked and head not in lost:
            lost.append(head)
        return [names[each][0] for each in lost]
