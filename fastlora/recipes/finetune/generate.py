"""Text from a model with an adapter: one answer, or a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastlora.adapter_files import load_pretrained
from fastlora.arguments import check_choice
from fastlora.recipes.finetune.base import bars_on_terminals, base_of_adapter, load_base, load_tokenizer
from fastlora.recipes.finetune.options import BASES, DEVICES, DTYPES
from fastlora.recipes.frame import check_extras
from fastlora.recipes.options import AUTO, check_count
from fastlora.seeding import seed_all


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Options of generation. The constructor checks them.

    Attributes:
        model: A folder or a name on the hub; None means the model that the adapter names.
        adapter: An adapter's folder; None takes the model as it is.
        system: What the chat begins with, as the role system; None for nothing.
        raw: Whether prompts go in as they stand, without the model's chat template.
        max_tokens: Tokens of an answer at most.
        temperature: 0 takes the most likely token each time; above it tokens are drawn.
        base: "nf4" packs the base in 4 bits.
        dtype: Of the base; "auto" means what the model's files say.
        seed: Of what is drawn.
        device: "auto" or "cpu".

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range, or neither model nor adapter is there.
    """

    model: str | None = None
    adapter: Path | None = None
    system: str | None = None
    raw: bool = False
    max_tokens: int = 256
    temperature: float = 0.0
    base: str | None = None
    dtype: str = AUTO
    seed: int = 0
    device: str = AUTO

    def __post_init__(self) -> None:
        if self.model is None and self.adapter is None:
            raise ValueError("model or adapter must be there; got neither")
        check_count("max_tokens", self.max_tokens, 1)
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number of at least 0; got {self.temperature!r}")
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("device", self.device, DEVICES)
        if self.base is not None:
            check_choice("base", self.base, BASES)
        if self.raw and self.system:
            raise ValueError("system goes with a chat template, and raw takes none")


class Speaker:
    """A model that answers.

    Args:
        options: Which one, and how.

    Raises:
        AdapterError: If the adapter's files are unsound or do not fit the model.
        MissingExtraError: If a package is not installed.
        ModelError: If there is no such model or adapter.
    """

    def __init__(self, options: GenerateOptions) -> None:
        check_extras("generation", ("transformers",), "finetune")
        with bars_on_terminals():
            self._load(options)
        seed_all(options.seed)

    def _load(self, options: GenerateOptions) -> None:
        name = options.model
        if name is None:
            assert options.adapter is not None
            name = base_of_adapter(options.adapter)
        beside = options.adapter is not None and (options.adapter / "tokenizer_config.json").is_file()
        self.options = options
        self.tokenizer = load_tokenizer(str(options.adapter) if beside else name)
        dtype = options.dtype if options.dtype == AUTO else getattr(torch, options.dtype)
        model = load_base(name, dtype, options.base)
        if options.adapter is not None:
            load_pretrained(model, options.adapter)
        gpu = options.device == AUTO and torch.cuda.is_available()
        self.model: Any = model.to("cuda" if gpu else "cpu").eval()

    @property
    def chats(self) -> bool:
        """Whether prompts go through a chat template."""
        return not self.options.raw and bool(self.tokenizer.chat_template)

    def answer(self, turns: Sequence[Mapping[str, str]], streamer: Any = None) -> str:
        """The text that the model adds.

        Args:
            turns: The chat so far, as messages; without a chat template the last one's content alone.
            streamer: A Transformers streamer, which shows tokens as they come.
        """
        if self.chats:
            started = [{"role": "system", "content": self.options.system}] if self.options.system else []
            encoded = self.tokenizer.apply_chat_template(
                [*started, *turns], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        else:
            encoded = self.tokenizer(turns[-1]["content"], return_tensors="pt")
        encoded = encoded.to(self.model.device)
        drawn = self.options.temperature > 0
        tokens = self.model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=self.options.max_tokens,
            do_sample=drawn,
            temperature=self.options.temperature if drawn else None,
            top_p=None,
            top_k=None,
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            streamer=streamer,
        )
        said: str = self.tokenizer.decode(
            tokens[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return said
