"""The fine-tuning job: read the data, load the model, put LoRA on it, train, and write what came of it.

TRL's SFTTrainer does the loop. Everything that can be wrong is looked at before anything is written. While it
trains, OUT/checkpoints holds the state to resume from; at the end the adapter, results.json and the picture
appear in OUT together.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from fastlora.adapter_files import save_pretrained
from fastlora.config import LoRAConfig
from fastlora.model.apply import apply_lora
from fastlora.model.report import parameter_report
from fastlora.recipes.finetune.base import ModelError, bars_on_terminals, load_base, load_tokenizer
from fastlora.recipes.finetune.options import DORA, FULL, FinetuneOptions
from fastlora.recipes.finetune.picture import draw_picture
from fastlora.recipes.finetune.results import (
    ADAPTER,
    BASE,
    MODEL,
    PICTURE,
    FinetuneResult,
    KindOfLayer,
    kinds_of_layers,
)
from fastlora.recipes.finetune.resuming import begin, starting_point
from fastlora.recipes.finetune.rows import MESSAGES, TEXT, Rows, read_rows, split_rows
from fastlora.recipes.finetune.tiny import TINY, write_tiny
from fastlora.recipes.finetune.trainer import Clock, answers_alone, arguments_of, build, peak_memory
from fastlora.recipes.frame import RESULTS, check_extras, staged, timed, write_results
from fastlora.recipes.options import AUTO
from fastlora.seeding import seed_all

_PACKAGES = ("transformers", "accelerate", "trl", "matplotlib")


def run(options: FinetuneOptions, say: Callable[[str], None] | None = None) -> FinetuneResult:
    """Do the whole job. Under torchrun each process trains on rows of its own, and the first one writes.

    Args:
        options: The job's options.
        say: Called with lines of progress; None means a progress bar where there is a terminal.

    Raises:
        FloatingPointError: If a loss is not finite.
        MissingExtraError: If a package is not installed.
        ModelError: If there is no such model, or it does not go with the data.
        OSError: If a file cannot be read or written.
        ResumeError: If there is nothing to resume, or something that must not be mixed with a new run.
        RowsError: If the data are unsound; the message names the line.
        ValueError: If LoRA does not fit on the model.
    """
    check_extras("fine-tuning", _PACKAGES, "finetune")
    with bars_on_terminals():
        return _run(options, say)


def _run(options: FinetuneOptions, say: Callable[[str], None] | None) -> FinetuneResult:
    seconds: dict[str, float] = {}
    with timed(seconds, "read"):
        rows = read_rows("data", options.data)
        held = read_rows("eval_data", options.eval_data) if options.eval_data else None
        if held is not None and held.form != rows.form:
            raise ValueError(f"eval_data must hold {rows.form}, as data; it holds {held.form}")
        digests = {"data_sha256": rows.digest, "eval_sha256": held.digest if held else ""}
        checkpoint = starting_point(options, digests)
    with timed(seconds, "load"), _taken_away_on_failure(options.out / BASE):
        evaluates = held is not None or (options.eval_share > 0 and len(rows.rows) > 1)
        arguments = arguments_of(options, evaluates=evaluates)
        with arguments.main_process_first(local=False):
            name = _model_name(options)
        tokenizer = _tokenizer(name, rows)
        arguments.assistant_only_loss = marked = answers_alone(rows, tokenizer)
        model = _model(options, name)
        kinds = kinds_of_layers(model)
        trainer = build(options, arguments, model, tokenizer, rows, held)
        if not len(trainer.train_dataset):
            raise ValueError(f"length must leave something to train on; {options.length} does not")
    clock = Clock(say)
    clock.attach(trainer)
    if arguments.process_index == 0:
        begin(options, digests)
    with timed(seconds, "train"):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    result = _result(options, trainer, kinds, rows, held, marked, checkpoint, clock, seconds)
    if arguments.process_index == 0:
        with staged(options.out, (RESULTS, PICTURE)) as draft:
            _write(options, model, tokenizer, draft, name)
            lengths = [len(row) for row in trainer.train_dataset["input_ids"]]
            draw_picture(draft / PICTURE, result.losses, result.evaluation, lengths)
            write_results(draft, result.as_json())
    arguments.distributed_state.wait_for_everyone()
    return result


@contextmanager
def _taken_away_on_failure(base: Path) -> Iterator[None]:
    """Where the block fails, leave neither the model "tiny" nor a folder that was made for it."""
    made = [folder for folder in (base, *base.parents) if not folder.exists()]  # innermost first
    try:
        yield
    except BaseException:
        if base in made:
            shutil.rmtree(base, ignore_errors=True)
        with suppress(OSError):  # a folder that is not empty stays
            for folder in made[1:]:
                folder.rmdir()
        raise


def _model_name(options: FinetuneOptions) -> str:
    """The model's name for Transformers; "tiny" is written to OUT/base first."""
    if options.model != TINY:
        return options.model
    folder = options.out / BASE
    if not folder.exists():
        with staged(options.out, ()) as draft:
            write_tiny(draft / BASE)
    return str(folder)


def _tokenizer(name: str, rows: Rows) -> Any:
    tokenizer = load_tokenizer(name)
    if rows.form == MESSAGES and not tokenizer.chat_template:
        raise ModelError(
            f"model must have a chat template for data with messages; {name!r} has none (take a model that "
            "is made to chat, or data with prompt and completion)"
        )
    if tokenizer.eos_token is None:
        raise ModelError(f"model must have a token that ends a text; the tokenizer of {name!r} has none")
    return tokenizer


def _model(options: FinetuneOptions, name: str) -> Any:
    seed_all(options.seed)
    on_cpu = options.device == "cpu" or not torch.cuda.is_available()
    dtype = getattr(torch, options.dtype) if options.dtype != AUTO else None
    if dtype is None:
        half = options.method != FULL and not on_cpu and torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if half else torch.float32
    model = load_base(name, dtype, options.base)
    model.config.use_cache = False
    if options.method != FULL:
        apply_lora(
            model,
            LoRAConfig(
                r=options.r,
                alpha=options.alpha,
                dropout=options.dropout,
                dora=options.method == DORA,
                target_modules=options.target_modules(),
                task_type="CAUSAL_LM",
            ),
        )
    if options.checkpointing:
        model.enable_input_require_grads()
    return model


def _result(
    options: FinetuneOptions,
    trainer: Any,
    kinds: tuple[KindOfLayer, ...],
    rows: Rows,
    held: Rows | None,
    marked: bool,
    checkpoint: Path | None,
    clock: Clock,
    seconds: dict[str, float],
) -> FinetuneResult:
    counted = parameter_report(trainer.model)
    history = trainer.state.log_history
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    if not all(math.isfinite(loss) for _, loss in losses):
        step = next(step for step, loss in losses if not math.isfinite(loss))
        raise FloatingPointError(f"the loss of step {step} is not finite; a lower --lr may help")
    train, held_back = split_rows(rows, 0.0 if held else options.eval_share, options.seed)
    sequences = trainer.train_dataset["input_ids"]
    whole = "completions" if rows.form not in (MESSAGES, TEXT) else "all tokens"
    return FinetuneResult(
        options=options,
        rows={"train": len(train), "evaluation": len(held.rows if held else held_back)},
        sequences=len(sequences),
        full_length=sum(len(row) >= options.length for row in sequences),
        form=rows.form,
        unused=rows.unused,
        loss_on="answers" if marked else whole,
        base_parameters=counted.base,
        lora_parameters=counted.lora,
        trainable=counted.trainable,
        kinds=kinds,
        steps=trainer.state.global_step,
        losses=losses,
        evaluation=[(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
        resumed_at=0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2]),
        tokens=int(clock.tokens),
        tokens_per_second=clock.tokens / clock.seconds if clock.seconds else None,
        peak_memory_bytes=peak_memory(trainer.args.device),
        seconds=seconds,
    )


def _write(options: FinetuneOptions, model: Any, tokenizer: Any, draft: Path, name: str) -> None:
    """Write the adapter, or the model if all of it was trained, with the tokenizer beside it."""
    folder = draft / (ADAPTER if options.method != FULL else MODEL)
    if options.method != FULL:
        save_pretrained(model, folder, base_model_name_or_path=name, task_type="CAUSAL_LM")
    else:
        model.config.use_cache = True
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
