"""The MNIST job: train a net, fine-tune it with LoRA on one digit, and prove what LoRA promises.

It does what notebooks that teach LoRA on MNIST do. A net far larger than the task needs is trained once. Then
a rank-1 update of its three layers is trained on one digit only. With the update on, the net knows that digit
better and the others worse. With it off, it is the net from before, bit for bit.

`run` is the whole job. Its phases are separate functions, in the order of their calls.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fastlora.adapter_files import save_adapter
from fastlora.recipes.digits import Digits, DigitSet, read_folder, read_sample
from fastlora.recipes.frame import RESULTS, check_extras, staged, timed, write_results
from fastlora.recipes.mlp import DigitsMLP
from fastlora.recipes.mnist.download import download
from fastlora.recipes.mnist.methods import LORA_METHODS, LoRAMethod
from fastlora.recipes.mnist.options import MnistOptions
from fastlora.recipes.mnist.picture import draw_picture
from fastlora.recipes.mnist.proofs import WeightProofs, prove_weights
from fastlora.recipes.mnist.results import ADAPTER, PICTURE, MnistResult, Parameters
from fastlora.recipes.options import AUTO
from fastlora.recipes.proofs import cloned
from fastlora.recipes.training import BATCH, Score, Track, constant, falling, fit, score, untracked
from fastlora.routes.route import Route, route_on

BASE_RATE: Final = 1e-3

# LoRA needs a larger rate than the weights themselves. On the shipped digits, with 6 seeds, 100 batches at
# 1e-3 just halve the errors on 9 (5 to 2, 4 to 2), and halve those on the worst digit, 2, in 2 runs of 6. At
# 2e-3 both are halved in all 6.
FINETUNE_RATE: Final = 2e-3

# On the shipped digits a constant rate ends at 0.92 to 0.93 (3 seeds), one that falls to zero at 0.95 to 0.96
# (6 seeds). The full set keeps the notebooks' single pass at a constant rate.
SAMPLE_EPOCHS: Final = 5
FULL_SET_EPOCHS: Final = 1


class FineTuned(NamedTuple):
    """A net after fine-tuning.

    Attributes:
        net: The net, with LoRA on if it has LoRA.
        method: How it computes LoRA; None if all weights were trained.
        losses: The loss of each batch, before its step.
    """

    net: DigitsMLP
    method: LoRAMethod | None
    losses: list[float]


def run(options: MnistOptions, track: Track = untracked) -> MnistResult:
    """Do the whole job and write results.json, the adapter and the picture.

    Args:
        options: The job's options.
        track: Shows progress.

    Raises:
        BackendError: If the kernels are asked for and cannot run here.
        DigitsError: If the data are damaged or lack the digit.
        DownloadError: If the full set could not be downloaded.
        FloatingPointError: If the loss is not finite.
        MissingExtraError: If safetensors or matplotlib is not installed.
        OSError: If a file cannot be read or written.
    """
    check_extras("the MNIST job", ("safetensors", "matplotlib"), "demo")
    path = route_on(options.torch_device(), options.dtype) if options.method == "fused" else None
    with staged(options.out, (RESULTS, ADAPTER, PICTURE)) as draft:
        return _run(options, path, draft, track)


def _run(options: MnistOptions, path: Route | None, draft: Path, track: Track) -> MnistResult:
    """Run all phases; write the files into the folder `draft`."""
    seconds: dict[str, float] = {}
    with timed(seconds, "read"):
        digits = read_digits(options)
    with timed(seconds, "train"):
        base = train_base(options, digits.train, track)
        before = cloned(base.state_dict())
    with timed(seconds, "test"):
        base_score = score(base, digits.test, what="Test the base net", track=track)
    digit = choose_digit(options, base_score)
    with timed(seconds, "finetune"):
        tuned = finetune(options, base, digits.train.only(digit), track)
    with timed(seconds, "test"):
        what = "Test with LoRA on" if tuned.method else "Test the fine-tuned net"
        on = score(tuned.net, digits.test, what=what, track=track)
    proofs, off = None, None
    if tuned.method is not None:
        proofs, off = _switched_off(tuned.net, tuned.method, before, digits.test, seconds, track)
        with timed(seconds, "save"):
            save(options, base, tuned.net, tuned.method, draft / ADAPTER)
    with timed(seconds, "picture"):
        draw_picture(draft / PICTURE, base_score.wrong, on.wrong, off and off.wrong, digit, tuned.losses)
    result = MnistResult(
        options=options,
        train_digits=len(digits.train.labels),
        test_digits=len(digits.test.labels),
        path=path,
        digit=digit,
        parameters=count_parameters(base, tuned),
        base=base_score,
        on=on,
        off=off,
        losses=tuned.losses,
        frozen_identical=proofs and proofs.frozen,
        effective_holds=proofs and proofs.enabled,
        off_identical=proofs and proofs.disabled and off == base_score,
        adapter_bytes=(draft / ADAPTER).stat().st_size if tuned.method else None,
        seconds=seconds,
    )
    write_results(draft, result.as_json())
    return result


def _switched_off(
    net: DigitsMLP,
    method: LoRAMethod,
    before: Mapping[str, Tensor],
    test: Digits,
    seconds: dict[str, float],
    track: Track,
) -> tuple[WeightProofs, Score]:
    """What holds of the weights, and the score with LoRA off, which it stays."""
    with timed(seconds, "prove"):
        proofs = prove_weights(net, method, before, track)
    with timed(seconds, "test"):
        method.enable_all(net, False)
        return proofs, score(net, test, what="Test with LoRA off", track=track)


def read_digits(options: MnistOptions) -> DigitSet:
    """The shipped digits, or the full set from its folder, downloaded first if the options say so."""
    folder = options.data
    if options.download:
        folder = folder or options.out / "data"
        download(folder)
    return read_sample() if folder is None else read_folder(folder)


def train_base(options: MnistOptions, train: Digits, track: Track = untracked) -> DigitsMLP:
    """A new net, trained on all digits; the seed gives its initial weights."""
    net = DigitsMLP(options.seed).to(device=options.torch_device(), dtype=options.dtype)
    is_sample = options.data is None and not options.download
    epochs = options.epochs or (SAMPLE_EPOCHS if is_sample else FULL_SET_EPOCHS)
    fit(
        net,
        net.parameters(),
        train,
        batches=epochs * -(-len(train.labels) // BATCH),
        generator=options.generator("train"),
        what="Train the base net",
        rate=BASE_RATE,
        schedule=falling if is_sample else constant,
        track=track,
    )
    return net


def choose_digit(options: MnistOptions, base: Score) -> int:
    """The digit to fine-tune on: the one asked for, or the one most often wrong."""
    return base.wrong.index(max(base.wrong)) if options.digit == AUTO else int(options.digit)


def finetune(
    options: MnistOptions, base: DigitsMLP, one_digit: Digits, track: Track = untracked
) -> FineTuned:
    """Fine-tune a copy of the base. The initial A and the batches depend on the seed, not on the method."""
    net, method = copy.deepcopy(base), LORA_METHODS.get(options.method)
    if method is not None:
        method.attach(net, options.rank, options.alpha)
        method.start(net, options.generator("A"))
    losses = fit(
        net,
        net.parameters() if method is None else method.trained(net),
        one_digit,
        batches=options.batches,
        generator=options.generator("finetune"),
        what=f"Fine-tune on {int(one_digit.labels[0])}",
        rate=FINETUNE_RATE,
        track=track,
    )
    return FineTuned(net, method, losses)


def save(options: MnistOptions, base: DigitsMLP, net: DigitsMLP, method: LoRAMethod, path: Path) -> None:
    """Write A and B to an adapter file, in the same form for every method."""
    portable, fused = copy.deepcopy(base), LORA_METHODS["fused"]
    fused.attach(portable, options.rank, options.alpha)
    with torch.no_grad():
        for target, source in zip(fused.trained(portable), method.trained(net), strict=True):
            target.copy_(source)
    save_adapter(portable, path)


def count_parameters(base: DigitsMLP, tuned: FineTuned) -> Parameters:
    """Count the parameters of the net and of LoRA."""
    own = sum(parameter.numel() for parameter in base.parameters())
    lora = 0 if tuned.method is None else sum(tensor.numel() for tensor in tuned.method.trained(tuned.net))
    return Parameters(base=own, lora=lora, total=own + lora, percent=100 * lora / own)
