"""The options of the fine-tuning job, and the checks of their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastlora.arguments import check_alpha, check_bool, check_choice, check_dropout, check_rank
from fastlora.config import ALL_LINEAR
from fastlora.recipes.options import AUTO, check_count
from fastlora.seeding import check_seed

LORA: Final = "lora"
FULL: Final = "full"
METHODS: Final = (LORA, FULL)

NF4: Final = "nf4"
BASES: Final = (NF4,)
DTYPES: Final = (AUTO, "bfloat16", "float16", "float32")
DEVICES: Final = (AUTO, "cpu")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Options of the fine-tuning job. The constructor checks them.

    Attributes:
        model: A folder of Transformers, a name on the hub, or "tiny", a Llama with random weights.
        data: A JSONL file, or the name of a data set on the hub; each row holds "messages", "prompt" and
            "completion", or "text".
        eval_data: The same, for the evaluation loss; None holds back a share of the data.
        eval_share: That share, in [0, 1); 0 evaluates nothing.
        method: "lora", or "full" to train every weight.
        r: Rank of each update.
        alpha: Each update is scaled by alpha / r.
        dropout: Of LoRA, in [0, 1).
        targets: "all-linear", or names of layers separated by commas.
        base: "nf4" packs the base in 4 bits; None leaves it as it is.
        dtype: Of the base; "auto" means bfloat16 on a GPU, float32 on a CPU and for the method "full".
        length: Tokens in a row at most; the rest is cut off.
        packing: Whether rows are put together until they have that length.
        batch: Rows in a step, of each process.
        accumulate: Batches that are added up to one step.
        lr: The highest learning rate, which falls to zero by half a cosine.
        epochs: Passes over the data.
        max_steps: Steps to train instead; None goes by `epochs`.
        checkpointing: Whether activations are computed again in the backward pass, to save memory.
        resume: Whether to go on from the last checkpoint in `out`.
        seed: The seed for everything random.
        device: "auto" or "cpu".
        out: Folder for checkpoints, adapter and results.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range, or two do not go together.
    """

    model: str
    data: str
    eval_data: str | None = None
    eval_share: float = 0.1
    method: str = LORA
    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = ALL_LINEAR
    base: str | None = None
    dtype: str = AUTO
    length: int = 1024
    packing: bool = False
    batch: int = 4
    accumulate: int = 1
    lr: float = 2e-4
    epochs: float = 1.0
    max_steps: int | None = None
    checkpointing: bool = False
    resume: bool = False
    seed: int = 0
    device: str = AUTO
    out: Path = Path("finetune-out")

    def __post_init__(self) -> None:
        for name, value in (("model", self.model), ("data", self.data), ("targets", self.targets)):
            _check(name, "text that is not empty", value, lambda text: bool(text.strip()), str)
        check_choice("method", self.method, METHODS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("device", self.device, DEVICES)
        if self.base is not None:
            check_choice("base", self.base, BASES)
        if self.base is not None and self.method == FULL:
            raise ValueError(f"method must be lora over a packed base; got full over {self.base}")
        check_rank(self.r)
        if check_alpha(self.alpha) in (None, 0.0):
            raise ValueError(f"alpha must be a finite number other than 0; got {self.alpha!r}")
        check_dropout(self.dropout)
        for name in ("packing", "checkpointing", "resume"):
            check_bool(getattr(self, name), name)
        for name, least in (("length", 2), ("batch", 1), ("accumulate", 1)):
            check_count(name, getattr(self, name), least)
        if self.max_steps is not None:
            check_count("max_steps", self.max_steps, 1)
        check_seed(self.seed)
        for name in ("lr", "epochs"):
            _check(
                name, "a finite number above 0", getattr(self, name), lambda n: 0 < n < 2**60, (int, float)
            )
        _check("eval_share", "a share in [0, 1)", self.eval_share, lambda n: 0 <= n < 1, (int, float))

    def as_json(self) -> dict[str, Any]:
        """The options in JSON's types."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    def target_modules(self) -> str | list[str]:
        """What `LoRAConfig` takes for `targets`."""
        if self.targets == ALL_LINEAR:
            return ALL_LINEAR
        return [name.strip() for name in self.targets.split(",")]


def _check(
    name: str,
    wanted: str,
    value: Any,
    sound: Callable[[Any], bool],
    kind: type | tuple[type, ...],
) -> None:
    message = f"{name} must be {wanted}; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(message)
    if not sound(value):
        raise ValueError(message)
