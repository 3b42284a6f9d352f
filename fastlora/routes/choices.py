"""What `fastlora tune` chose for this machine's GPU, read from its file once, when first asked.

Files are looked for in this order: FASTLORA_TUNE_FILE; the user's cache folder, where `fastlora tune`
writes; the package, whose files other people measured. FASTLORA_TUNE=0 means none. A file that is damaged, or
of other kernels or another Triton than are installed, is not used: one warning says why. Nothing here raises.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import warnings
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

import torch

from fastlora.arguments import dtype_name
from fastlora.formula.cost import Problem
from fastlora.routes.architecture import architecture_of, kind_of
from fastlora_kernels.choice_content import (
    KERNELS,
    MOST_PACKED_ROWS,
    PACKED,
    PERSISTENT,
    PLAIN,
    VENDOR,
    Choice,
    Choices,
    Key,
    as_content,
    bucket,
    read_choices,
)
from fastlora_kernels.tables import text_of

# Files by kind of GPU that people measured and sent.
SHIPPED: Final = Path(__file__).parent / "choices_of_gpus"
COMMAND: Final = "run `fastlora tune` again"

WORDS: Final = {
    KERNELS: "this tile",
    VENDOR: "the vendor's matrix products",
    PERSISTENT: "the persistent kernels",
    PACKED: "the kernel that unpacks W inside the product",
}
_MOST_BYTES: Final = 8 * 2**20
_KERNELS: Final = "fastlora_kernels"


class Loaded(NamedTuple):
    """What was found for a kind of GPU.

    Attributes:
        choices: None if there is none that can be used.
        path: The file that was looked at.
        why: Why it is not used, or where the choices are from; as a phrase.
    """

    choices: Choices | None
    path: Path | None
    why: str

    @property
    def digest(self) -> str:
        """What two processes compare; "" where there is no choice."""
        if self.choices is None:
            return ""
        text = json.dumps(as_content(self.choices)["entries"], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def chosen(
    direction: str, architecture: str, problem: Problem, *, dropout: bool, aligned: bool
) -> tuple[Choice | None, str]:
    """The code measured to be the fastest for a pass on this machine's GPU; None if nobody measured it.

    Beside it, the format of W that it was measured with: the layer's, else "plain", whose choices a packed W
    takes where it has none of its own.

    Args:
        direction: "forward" or "backward".
        architecture: Of the GPU, by the name of its tile table.
        problem: Shape and dtypes.
        dropout: Whether there is dropout.
        aligned: Whether TMA can address the operands, as it could where it was measured.
    """
    if not aligned or 0 in problem[:4]:
        return None, PLAIN
    found = loaded(architecture).choices
    if found is None:
        return None, PLAIN
    key = key_of(direction, problem, dropout)
    choice = found.entries.get(key)
    # A bucket's larger numbers of rows are not for every code.
    if choice is not None and (choice.code != PACKED or problem.M <= MOST_PACKED_ROWS):
        return choice, key.base
    return found.entries.get(key._replace(base=PLAIN)), PLAIN


def why(choice: Choice, base: str) -> str:
    """Why a choice was made, measured over a W in a format, as a phrase to show."""
    what = WORDS[choice.code] + ("" if base == PLAIN else f", over {base},")
    gain = "the default" if choice.gain == 1 else f"{choice.gain:.2f} times as fast as the default"
    return (
        f"`fastlora tune` measured {what} to be the fastest here: {choice.us:.1f} us, {gain}; "
        f"next {choice.runner_up}"
    )


def key_of(direction: str, problem: Problem, dropout: bool) -> Key:
    """What a choice for a pass is kept under."""
    M, K, N, r, dtype, adapter, base = problem
    dtypes = kind_of(dtype), dtype_name(dtype), dtype_name(adapter)
    return Key(direction, *dtypes, K, N, r, bucket(M), dropout, base)


@functools.lru_cache(maxsize=8)
def loaded(architecture: str) -> Loaded:
    """The choices for this machine's GPU of an architecture, read once; of the CPU for "interpreter"."""
    if os.environ.get("FASTLORA_TUNE") == "0":
        return Loaded(None, None, "FASTLORA_TUNE=0")
    asked_for = os.environ.get("FASTLORA_TUNE_FILE")
    gpu = _gpu_of(architecture)
    if gpu is None and asked_for is None:
        return Loaded(None, None, "no GPU, or several kinds of it")
    own = own_file(gpu or architecture)
    if own is not None and (asked_for or _exists(own)):
        return _read(own, gpu, warn=True)
    shipped = SHIPPED / file_name(gpu or architecture)
    if _exists(shipped):
        return _read(shipped, gpu, warn=False)
    return Loaded(None, own, "nobody has run `fastlora tune` here")


def forget_choices() -> None:
    """Have the files looked for and read again."""
    loaded.cache_clear()


def own_file(gpu: str) -> Path | None:
    """Where the user's choices for a kind of GPU are kept; None without platformdirs to say where."""
    if asked_for := os.environ.get("FASTLORA_TUNE_FILE"):
        return Path(asked_for)
    if importlib.util.find_spec("platformdirs") is None:
        return None
    import platformdirs

    return Path(platformdirs.user_cache_dir("fastlora")) / "tuned" / file_name(gpu)


def file_name(gpu: str) -> str:
    """A GPU's name as a file's: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3.json"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def current_versions() -> dict[str, str]:
    """What choices are valid for: a hash of the kernels' sources, and Triton's version."""
    return {"kernels": _hash_of_kernels(), "triton": _version_of("triton")}


def read_file(path: Path) -> Choices:
    """A file's choices, whether they are valid here or not.

    Raises:
        ValueError: If it is no such file.
        OSError: If it cannot be read.
    """
    try:
        return read_choices(json.loads(text_of(path, _MOST_BYTES)))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read(path: Path, gpu: str | None, *, warn: bool) -> Loaded:
    try:
        choices = read_file(path)
        why = _why_stale(choices, gpu)
    except (ValueError, OSError) as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
    if not why:
        return Loaded(choices, path, f"measured on {choices.metadata.get('when', 'an unknown day')}")
    if warn:
        warnings.warn(f"{path} is not used: {why} ({COMMAND})", stacklevel=6)
    return Loaded(None, path, why)


def _why_stale(choices: Choices, gpu: str | None) -> str:
    """Why choices do not count here; "" if they do."""
    its = choices.metadata
    if gpu is not None and its.get("gpu") != gpu:
        return f"it was measured on {its.get('gpu')!r}, and this is {gpu!r}"
    for name, now in current_versions().items():
        if its.get(name) != now:
            return f"it was measured with {name} {its.get(name)}, and {now} is installed"
    return ""


def _gpu_of(architecture: str) -> str | None:
    """The name of the GPU of an architecture; None if there is none here, or several kinds."""
    if not torch.cuda.is_available():
        return None
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    names = {torch.cuda.get_device_name(one) for one in devices if architecture_of(one) == architecture}
    return names.pop() if len(names) == 1 else None


@functools.cache
def _hash_of_kernels() -> str:
    found = importlib.util.find_spec(_KERNELS)
    hashed = hashlib.sha256()
    for folder in (found and found.submodule_search_locations) or ():
        for file in sorted((*Path(folder).glob("*.py"), *Path(folder).glob("hopper/*.py"))):
            hashed.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()[:16]


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
