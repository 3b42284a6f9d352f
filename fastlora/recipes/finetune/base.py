"""Loads the base model and its tokenizer, and says in one line what is wrong with a name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from fastlora.accounting.transformers_config import find_config, in_short
from fastlora.recipes.options import AUTO

CONFIG: Final = "adapter_config.json"


class ModelError(ValueError):
    """There is no such model or adapter, or it cannot be loaded here."""


@contextmanager
def bars_on_terminals() -> Iterator[None]:
    """Transformers' progress bars for reading and writing weights are shown on a terminal alone."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model.

    Raises:
        ModelError: If there is none of this name.
    """
    from transformers import AutoTokenizer

    return _loaded("tokenizer", "tokenizer_config.json", name, lambda: AutoTokenizer.from_pretrained(name))


def load_base(name: str, dtype: torch.dtype | str = AUTO, base: str | None = None) -> Any:
    """A causal language model.

    Args:
        name: A folder, or a name on the hub. No code that comes with a model is run.
        dtype: Of its weights; "auto" means what the model's files say.
        base: "nf4" packs its linear layers into 4 bits, nested as in the QLoRA paper; None does not.

    Raises:
        ImportError: If bitsandbytes is asked for and not installed.
        ModelError: If there is no such model.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": dtype}
    if base is not None:
        options["quantization_config"] = _four_bits(dtype)
    load = AutoModelForCausalLM.from_pretrained
    return _loaded("model", "config.json", name, lambda: load(name, **options))


def base_of_adapter(adapter: Path) -> str:
    """The name of the model that an adapter was trained on, from its config.

    Raises:
        ModelError: If there is no adapter, or its config names no model.
    """
    try:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"adapter must be a folder with {CONFIG}; {str(adapter)!r}: {in_short(error)}"
        ) from error
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(name, str) or not name:
        raise ModelError(f"{str(adapter / CONFIG)!r} names no base model; say it by --model")
    return name


def _four_bits(dtype: torch.dtype | str) -> Any:
    import transformers

    from fastlora.recipes.frame import check_extras

    check_extras("a base in nf4", ("bitsandbytes",), "bnb")
    config_class: Any = transformers.BitsAndBytesConfig
    options: Any = {"bnb_4bit_compute_dtype": dtype} if isinstance(dtype, torch.dtype) else {}
    return config_class(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **options
    )


def _loaded(what: str, file: str, name: str, load: Any) -> Any:
    try:
        if Path(name).exists():
            if not (Path(name) / file).is_file():
                raise ModelError(f"model must be a folder with {file}; {name!r} has none")
        elif "/" in name:
            if name.startswith((".", "/", "~")) or name.count("/") > 1:
                raise ModelError(f"model must be a folder that exists or a name on the hub; got {name!r}")
            find_config(name)  # it asks the hub once, where loading alone tries for half a minute
        return load()
    except ModelError:
        raise
    # Damaged files, a hub that cannot be reached, types that are no language models: many types of errors.
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the {what} {name!r} cannot be loaded: {in_short(error)}") from error
