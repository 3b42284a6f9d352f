"""Builds TRL's SFTTrainer from the options: the data, the loss, and what is logged and saved when."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from fastlora.recipes.finetune.options import FULL, FinetuneOptions
from fastlora.recipes.finetune.rows import MESSAGES, Rows, split_rows

# Evaluated and saved at each tenth of the steps; the two last checkpoints are kept.
_EVERY: Final = 0.1
_KEPT: Final = 2
_WARM_UP: Final = 0.03
CHECKPOINTS: Final = "checkpoints"


def arguments_of(options: FinetuneOptions, *, answers_alone: bool, evaluates: bool, terminal: bool) -> Any:
    """TRL's SFTConfig. Under torchrun, making it joins the other processes.

    Args:
        options: The job's options.
        answers_alone: Whether of messages only the answers are in the loss.
        evaluates: Whether there are rows to evaluate on.
        terminal: Whether to show a progress bar.
    """
    from trl.trainer.sft_config import SFTConfig

    on_cpu = options.device == "cpu" or not torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(options.out / CHECKPOINTS),
        max_length=options.length,
        packing=options.packing,
        packing_strategy="wrapped",  # the other keeps rows apart by FlashAttention alone
        assistant_only_loss=answers_alone,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.lr,
        lr_scheduler_type="cosine",
        warmup_steps=_WARM_UP,
        num_train_epochs=options.epochs,
        max_steps=-1 if options.max_steps is None else options.max_steps,
        activation_checkpointing=options.checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        # A frozen base has its own dtype, and A and B theirs: autocast is for weights trained in fp32.
        bf16=options.method == FULL and not on_cpu and torch.cuda.is_bf16_supported(),
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=_EVERY,
        save_strategy="steps",
        save_steps=_EVERY,
        save_total_limit=_KEPT,
        include_num_input_tokens_seen="non_padding",
        report_to="none",
        disable_tqdm=not terminal,
        use_cpu=on_cpu,
        seed=options.seed,
    )


def build(
    options: FinetuneOptions, arguments: Any, model: Any, tokenizer: Any, rows: Rows, held: Rows | None
) -> Any:
    """The trainer, with the rows tokenized.

    Args:
        options: The job's options.
        arguments: From `arguments_of`.
        model: The model, with LoRA or with all its weights to train.
        tokenizer: Its tokenizer.
        rows: What to train on.
        held: What to evaluate on; None holds back a share of `rows`.
    """
    from datasets import Dataset, disable_progress_bars
    from trl.trainer.sft_trainer import SFTTrainer

    train, held_back = split_rows(rows, 0.0 if held else options.eval_share, options.seed)
    evaluated: Sequence[dict[str, Any]] = held.rows if held else held_back
    disable_progress_bars()
    dtypes = {name: each.dtype for name, each in model.named_parameters() if each.requires_grad}
    trainer = SFTTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(list(evaluated)) if evaluated else None,
        processing_class=tokenizer,
    )
    # Over a packed base, TRL rounds what is trained to bf16. A and B stay what LoRA made them.
    for name, each in model.named_parameters():
        if name in dtypes and each.dtype != dtypes[name]:
            each.data = each.data.to(dtypes[name])
    return trainer


def answers_alone(rows: Rows, tokenizer: Any) -> bool:
    """Whether the loss can be of the answers alone: messages, and a template that marks them."""
    if rows.form != MESSAGES:
        return False
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if has_generation_markers(tokenizer.chat_template):
        return True
    try:
        return get_training_chat_template(tokenizer) is not None
    except ValueError:  # TRL knows no marked version of this template
        return False


class Clock:
    """The seconds and tokens of a trainer's steps, told by a callback.

    Args:
        say: Called with a line at some steps, where there is no progress bar; None says nothing.
    """

    def __init__(self, say: Callable[[str], None] | None) -> None:
        self.say = say
        self.seconds = 0.0
        self.tokens = 0

    def attach(self, trainer: Any) -> None:
        """Have the trainer tell this clock, and no longer print what it logs as dictionaries."""
        from transformers import PrinterCallback, TrainerCallback

        clock = self

        class Told(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.began, self.seen = time.perf_counter(), state.num_input_tokens_seen

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                clock.seconds += time.perf_counter() - self.began
                clock.tokens += state.num_input_tokens_seen - self.seen

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                step, steps = state.global_step, state.max_steps
                due = step == steps or step % max(1, steps // 10) == 0
                if clock.say is not None and state.is_world_process_zero and due:
                    for name, words in (("loss", "loss"), ("eval_loss", "evaluation loss")):
                        if name in (logs or {}):
                            clock.say(f"step {step:,} of {steps:,}: {words} {logs[name]:.4f}")

        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Told())


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use: by torch on the GPU, or by this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
