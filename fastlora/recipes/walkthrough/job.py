"""The walk-through: train a small MLP, fine-tune it with LoRA for another task, and look at what changed.

It does what PEFT's own example for plain PyTorch modules does. A net is trained on one task. Two of its
layers get LoRA. As a check it is trained a little further on the same task, and then it is fine-tuned for a
similar one. PEFT can do the same steps too, from the same seeds, for comparison.

`run` is the whole job; `walk` is what each library does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from fastlora.recipes.frame import RESULTS, check_extras, staged, timed, write_results
from fastlora.recipes.training import Track, score, untracked
from fastlora.recipes.walkthrough.libraries import FASTLORA, PEFT
from fastlora.recipes.walkthrough.options import WalkOptions
from fastlora.recipes.walkthrough.picture import draw_picture
from fastlora.recipes.walkthrough.results import BASE, PICTURE, Walk, WalkResult
from fastlora.recipes.walkthrough.tasks import SumMLP, sine_task, threshold_task
from fastlora.recipes.walkthrough.walk import Tasks, train_epochs, walk
from fastlora.routes.route import Route, route_on

PRETRAIN_EPOCHS: Final = 20


def run(options: WalkOptions, track: Track = untracked) -> WalkResult:
    """Do the whole job and write results.json, the base, the adapters and the picture.

    Args:
        options: The job's options.
        track: Shows progress.

    Raises:
        BackendError: If the kernels are asked for and cannot run here.
        FloatingPointError: If the loss is not finite.
        MissingExtraError: If safetensors or matplotlib is not installed, or PEFT if it is asked for.
        OSError: If a file cannot be written.
    """
    check_extras("the walk-through", ("safetensors", "matplotlib"), "demo")
    if options.peer == "peft":
        check_extras("--peer peft", ("peft",), "peft")
    path = route_on(options.torch_device(), torch.float32)
    with staged(options.out, (RESULTS, BASE, PICTURE)) as draft:
        return _run(options, path, draft, track)


def _run(options: WalkOptions, path: Route, draft: Path, track: Track) -> WalkResult:
    """Run all phases; write the files into the folder `draft`."""
    device = options.torch_device()
    seconds: dict[str, float] = {}
    tasks = Tasks(sine_task(options.generator("sine")), threshold_task(options.generator("threshold")))
    with timed(seconds, "pretrain"):
        base = SumMLP(options.seed).to(device)
        pretrain = train_epochs(
            base,
            tasks.sine.train,
            PRETRAIN_EPOCHS,
            options.generator("pretrain"),
            what="Pretrain",
            track=track,
        )
    walks: dict[str, Walk] = {}
    for name in ("fastlora", *([options.peer] if options.peer else ())):
        with timed(seconds, name):
            library = PEFT if name == "peft" else FASTLORA
            walks[name] = walk(name, library, base, tasks, replace(options, out=draft), track)
    result = WalkResult(
        options=options,
        path=path,
        base_parameters=sum(tensor.numel() for tensor in base.parameters()),
        base_bytes=_save_base(base, draft / BASE),
        pretrain=pretrain,
        pretrain_accuracy=score(base, tasks.sine.test).accuracy,
        base_accuracy=score(base, tasks.threshold.test).accuracy,
        ours=walks["fastlora"],
        peer=walks.get("peft"),
        seconds=seconds,
    )
    with timed(seconds, "picture"):
        draw_picture(draft / PICTURE, result)
    write_results(draft, result.as_json())
    return result


def _save_base(base: SumMLP, path: Path) -> int:
    from safetensors.torch import save_file

    save_file(base.state_dict(), path)
    return path.stat().st_size
