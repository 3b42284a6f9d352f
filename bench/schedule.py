"""Which layers are measured, by a GPU run and by the linear level.

A GPU run takes them in the order of their worth: one that is cut short has the most of it. The linear level
takes the same on a GPU, the layers of small nets on a CPU.

Shapes of the models that the peers report: Llama 3.1 8B and 70B, Qwen 2.5 32B; and what breaks fused kernels:
few rows, very many, ragged numbers of them, narrow layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

from bench.cases import Case, Measurement
from bench.methods import BY_ROUTE, GROUPED, METHODS, UNDROPPED

HEADLINE: Final = (4096, 4096)
# (K, N) of the linear layers; the headline shape is one of them.
LLAMA_8B: Final = ((4096, 4096), (4096, 14336), (14336, 4096), (4096, 6144), (4096, 1024))
LLAMA_70B: Final = ((8192, 8192), (8192, 28672), (28672, 8192), (8192, 10240))
QWEN_32B: Final = ((5120, 5120), (5120, 27648), (27648, 5120), (5120, 7168))

_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32

# Everything but ours without dropout, which is beside it in the cases with dropout, and groups: a layer alone
# has none.
EVERY: Final = tuple(name for name in METHODS if name not in (UNDROPPED.name, GROUPED.name))
EVERY_WITH_DROPOUT: Final = (*EVERY, UNDROPPED.name)
# Everything that is worth its time in many shapes. torch.compile takes seconds a shape, the weight-space
# parametrization loses by its design: they are measured where every method is.
_ROUTES: Final = ("fastlora", *(one.name for one in BY_ROUTE))
COMMON: Final = ("frozen", "full", "unfused", "addmm", "peft", *_ROUTES)
_DROPOUT: Final = ("frozen", "full", "unfused", "peft", *_ROUTES, UNDROPPED.name)

# Training waits for the GPU, so graphs are what matters; eager shows what Python costs where it shows.
_BOTH: Final = ("eager", "graph")
_GRAPH: Final = ("graph",)


def gpu_measurements() -> tuple[Measurement, ...]:
    """The run on a GPU; every case once."""
    unique: dict[Case, Measurement] = {}
    for measurement in _in_order():
        unique.setdefault(measurement.case, measurement)
    return tuple(unique.values())


def _in_order() -> Iterator[Measurement]:
    K, N = HEADLINE
    headline = Case(8192, K, N, 16, _BF16, _BF16)
    for case, methods in (
        (headline, EVERY),
        (headline._replace(adapter_dtype=_FP32), COMMON),
        (headline._replace(dropout=0.1), _DROPOUT),
    ):
        yield Measurement(case, methods, _BOTH, launches=True, seconds=0.75)
    # The shapes of the means: with bf16 adapters, then fp32, then dropout.
    for M in (8192, 2048):
        yield from _shapes(M, LLAMA_8B, headline, COMMON)
    # Few rows, as in decoding; narrow layers, as in the digits' classifier; very many rows.
    for M in (1, 16, 64, 128, 512):
        yield Measurement(headline._replace(M=M), COMMON, _BOTH)
    for M in (8192, 2048):
        yield from _shapes(M, LLAMA_70B, headline, COMMON)
    for M in (128, 65536):
        yield from _shapes(M, ((784, 1000), (1000, 10)), headline, COMMON)
    yield Measurement(headline._replace(M=16384), COMMON, _GRAPH)
    for r in (64, 8, 128):
        yield from _shapes(8192, (HEADLINE, (4096, 14336)), headline._replace(r=r), COMMON)
    mixed = headline._replace(adapter_dtype=_FP32)
    yield from _shapes(8192, (*LLAMA_8B, *LLAMA_70B), mixed, COMMON)
    yield Measurement(mixed._replace(dropout=0.1), _DROPOUT, _GRAPH)
    yield from _shapes(8192, ((4096, 14336), (14336, 4096)), headline._replace(dropout=0.1), _DROPOUT)
    yield Measurement(headline._replace(bias=True), COMMON, _GRAPH)
    yield Measurement(headline._replace(dtype=_FP16, adapter_dtype=_FP16), COMMON, _GRAPH)
    yield Measurement(Case(8192, 1024, 4096, 16, _BF16, _BF16), COMMON, _GRAPH)
    for M in (2837, 4095, 4097):
        yield Measurement(headline._replace(M=M), COMMON, _GRAPH)
    for M in (1, 16, 64):
        yield from _shapes(M, ((4096, 14336),), headline, COMMON)
    yield from _shapes(16384, ((4096, 14336), (14336, 4096)), headline, COMMON)
    yield from _shapes(4096, QWEN_32B, headline, COMMON)
    yield from _shapes(2048, (*LLAMA_8B, *LLAMA_70B), mixed, COMMON)


def _shapes(
    M: int, layers: tuple[tuple[int, int], ...], like: Case, methods: tuple[str, ...]
) -> Iterator[Measurement]:
    """The layers with M rows, otherwise as the case given, by graphs alone."""
    for K, N in layers:
        yield Measurement(like._replace(M=M, K=K, N=N), methods, _GRAPH)


# torch.compile takes seconds, on a busy CPU half a minute, for each shape.
SELDOM: Final = "compiled"
SELDOM_WHY: Final = "compiling takes longer than the rest: measured for one shape of a kind"

_OFTEN: Final = tuple(name for name in EVERY if name != SELDOM)

# (M, K, N, r) of the MNIST job's net, and of a net for tabular data.
_MNIST: Final = ((10, 1000, 2000, 1), (10, 784, 1000, 1), (10, 2000, 10, 1))
_MLP: Final = ((64, 2000, 200, 3), (64, 20, 2000, 3), (64, 200, 2, 3))

# Where the products take most of the time.
_LARGE: Final = (
    (128, 1024, 1024, 16),
    (128, 1000, 2000, 16),
    (128, 1024, 4096, 16),
    (128, 4096, 1024, 16),
    (512, 1024, 1024, 16),
    (512, 1000, 2000, 16),
)

# bf16 where the CPU has units for it; without them a product takes seconds, whatever the method.
FAST_ON_CPU: Final = (
    _BF16 if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported() else _FP32
)
# What is saved for backward shows with dropout and adapters wider than the base.
_DROPPED: Final = Case(512, 1024, 1024, 16, FAST_ON_CPU, _FP32, dropout=0.1)


def packed_measurements(base: str, device: torch.device) -> tuple[Measurement, ...]:
    """Layers whose W is packed, and the same ones plain; frozen is the library's own layer, or nn.Linear."""
    shapes = [(512, 1024, 1024), (2048, 1024, 1024), (512, 1024, 4096), (512, 4096, 1024)]
    modes: tuple[str, ...] = ("eager",)
    dtypes = dict.fromkeys((FAST_ON_CPU, _FP32))
    if device.type == "cuda":
        dtypes = dict.fromkeys((_BF16,))
        shapes, modes = [(M, K, N) for M in (2048, 4096, 8192) for K, N in LLAMA_8B], _BOTH
    cases = [Case(*shape, 16, dtype, _FP32, base=base) for dtype in dtypes for shape in shapes]
    packed = [Measurement(case, ("frozen", "peft", "fastlora"), modes) for case in cases]
    plain = [Measurement(case._replace(base=""), ("frozen", "fastlora"), modes) for case in cases]
    return tuple(one for pair in zip(packed, plain, strict=True) for one in pair)


def cpu_measurements() -> Iterator[Measurement]:
    """What the linear level measures on a CPU."""
    for shapes, bias in ((_MNIST, True), (_MLP, True), (_LARGE, False)):
        for number, shape in enumerate(shapes):
            case = Case(*shape, _FP32, _FP32, bias=bias)
            yield Measurement(case, _OFTEN if number else EVERY, ("eager",), launches=number == 0)
    yield Measurement(_DROPPED, _OFTEN, ("eager",), launches=True)
