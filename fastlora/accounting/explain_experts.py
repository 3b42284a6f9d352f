"""What a pass of a mixture's experts costs at least: FLOPs, bytes, and the time that these imply on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from fastlora.accounting.gpus import GPUS, rate_of
from fastlora.arguments import dtype_name
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.experts.stacks import DOWN
from fastlora.formula.cost import Cost, Problem
from fastlora.routes.route import Route
from fastlora.segments.decide import decide_for
from fastlora.tables import as_html

_P_BYTES: Final = 4
_INT_BYTES: Final = 8


class ExpertsProblem(NamedTuple):
    """Shapes and dtypes of one projection of a mixture, and a batch.

    Attributes:
        x_rows: Rows of x.
        places: Rows that are computed: each token at each of its experts.
        y_rows: Rows of y.
        experts: E, the experts that there are.
        K: Columns of x.
        N: Columns of y.
        r: The rank of each expert's update.
        dtype: Of x, W and y.
        adapter_dtype: Of A and B.
    """

    x_rows: int
    places: int
    y_rows: int
    experts: int
    K: int
    N: int
    r: int
    dtype: torch.dtype
    adapter_dtype: torch.dtype

    @property
    def busy(self) -> int:
        """The most experts that can get a row; each reads its W once."""
        return min(self.experts, self.places)

    def forward(self) -> Cost:
        """x, the plan, and W, A and B of the busy experts are read; y and p are written."""
        K, N, r = self.K, self.N, self.r
        return Cost(2 * self.places * (N * K + r * (K + N)), self._bytes(passes=1))

    def backward(self) -> Cost:
        """dy, x, the plan, p, and W, A and B of the busy experts are read; dx, dA and dB are written."""
        K, N, r = self.K, self.N, self.r
        dx = self.dtype.itemsize * self.x_rows * K
        return Cost(2 * self.places * (N * K + 2 * r * (K + N)), self._bytes(passes=2) + dx)

    def weight_bytes(self) -> int:
        """Bytes of W of the busy experts."""
        return self.dtype.itemsize * self.busy * self.N * self.K

    def _bytes(self, passes: int) -> int:
        """Of x, W, y or dy, p and the plan; and of A and B, written too in the second of the passes."""
        rows = self.dtype.itemsize * (self.x_rows * self.K + self.y_rows * self.N)
        adapters = passes * self.adapter_dtype.itemsize * self.busy * self.r * (self.K + self.N)
        plan = _INT_BYTES * (self.places + self.experts + 1)
        return rows + self.weight_bytes() + adapters + _P_BYTES * self.places * self.r + plan


@dataclass(frozen=True)
class ExpertsExplanation:
    """The result of `explain` for experts; `str()` of it is a readable text.

    Attributes:
        problem: Shapes and dtypes.
        path: Which code computes both passes, and why.
        gpu: The GPU of `floors_us`, or None.
        floors_us: {pass: least microseconds there}; empty without a GPU.
    """

    problem: ExpertsProblem
    path: Route
    gpu: str | None
    floors_us: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        """The explanation in JSON's types."""
        *sizes, dtype, adapter_dtype = self.problem
        costs = {"forward": self.problem.forward(), "backward": self.problem.backward()}
        return {
            "shape": dict(zip(self.problem._fields, sizes, strict=False)),
            "dtype": dtype_name(dtype),
            "adapter_dtype": dtype_name(adapter_dtype),
            "path": self.path._asdict(),
            "gpu": self.gpu,
            "passes": [
                {"name": name, "flops": c.flops, "bytes": c.moved, "floor_us": self.floors_us.get(name)}
                for name, c in costs.items()
            ],
        }

    def __str__(self) -> str:
        o = self.problem
        x = f"x [{o.x_rows}, {o.K}] {dtype_name(o.dtype)} at {o.places} places of {o.experts} experts"
        y = f"y [{o.y_rows}, {o.N}], rank {o.r} each in {dtype_name(o.adapter_dtype)}"
        lines = [f"{x} -> {y}", f"path: {self.path.name} ({self.path.why})"]
        for name, cost in (("forward", o.forward()), ("backward", o.backward())):
            line = f"{name}: {cost.flops / 1e9:,.3f} GFLOP, {cost.moved / 1e6:,.3f} MB"
            if name in self.floors_us:
                line += f", at least {self.floors_us[name]:,.1f} us on {self.gpu} by its datasheet"
            lines.append(line)
        weights = o.weight_bytes() / 1e6
        lines.append(
            f"  {weights:,.3f} MB of that are W of up to {o.busy} experts with tokens, read once a pass"
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return as_html(str(self).splitlines())


def explain_experts(
    rows: int, layer: FusedLoRAExperts, gpu: str | None, *, named: bool
) -> ExpertsExplanation:
    """Explain a layer of experts on so many rows of x; the experts of a token are its config's number.

    Args:
        rows: Rows of x: tokens for the first projection, tokens times their experts for the last.
        layer: With a part in the adapter in use.
        gpu: A key of `gpus.GPUS`, or None.
        named: Whether to decide for that GPU, and not for the layer's device.

    Raises:
        BackendError: If the backend is set to "triton" and cannot run there.
        ValueError: If the config does not tell how many experts a token has.
    """
    top_k = getattr(layer.stack.experts.config, "num_experts_per_tok", None)
    if not isinstance(top_k, int):
        raise ValueError("layer must lie in a mixture whose config has num_experts_per_tok")
    is_last = layer.parameter == DOWN
    places = rows if is_last else rows * top_k
    problem = ExpertsProblem(
        x_rows=rows,
        places=places,
        y_rows=-(-places // top_k) if is_last else places,
        experts=layer.num_experts,
        K=layer.in_features,
        N=layer.out_features,
        r=layer.r,
        dtype=layer.weight.dtype,
        adapter_dtype=layer.lora_A.dtype,
    )
    floors: dict[str, float] = {}
    if gpu is not None:
        rates = (rate_of(GPUS[gpu], problem.dtype), GPUS[gpu].bandwidth)
        floors = {
            "forward": problem.forward().floor_us(*rates),
            "backward": problem.backward().floor_us(*rates),
        }
    shape = Problem(places, problem.K, problem.N, problem.r, problem.dtype, problem.adapter_dtype)
    target = {"gpu": gpu, "architecture": GPUS[gpu].architecture} if named and gpu is not None else {}
    path = decide_for(shape, layer.weight.device, **target)
    return ExpertsExplanation(problem, path, gpu, floors)
