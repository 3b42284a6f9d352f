"""The results of the walk-through, and the results.json that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fastlora.recipes.results import LoRAResult
from fastlora.recipes.walkthrough.libraries import Counts
from fastlora.recipes.walkthrough.options import WalkOptions

BASE: Final = "base.safetensors"
PICTURE: Final = "mlp.png"


class Proofs(NamedTuple):
    """Which promises hold.

    Attributes:
        starts_at_zero: B A is exactly 0 before the first step.
        base_identical: After fine-tuning, every tensor of the base is in the net, bit for bit.
        merged_holds: After merging, the net has the tensors of the base and no others. Each adapted weight is
            W + s B A within rounding, and the others are the base's, bit for bit.
        reloaded_identical: With the saved adapter in the base, the outputs are the same, bit for bit.
    """

    starts_at_zero: bool
    base_identical: bool
    merged_holds: bool
    reloaded_identical: bool


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Figures and proofs of one library.

    Attributes:
        counts: The number of parameters with the updates.
        with_full_layer: The same if the last layer is also trained in full.
        losses: {phase: mean loss of each epoch} of "same_data" and "downstream".
        accuracy: Share of the downstream task's test rows that it labels right.
        moved: {tensor: whether fine-tuning changed any bit of it}.
        change: {tensor: ‖change‖ / ‖tensor before‖}; None if it began at 0.
        adapter_bytes: Size of the adapter's tensor file.
        merged_parameters: The number of parameters of the plain net after merging.
        proofs: Which promises hold.
    """

    counts: Counts
    with_full_layer: Counts
    losses: dict[str, list[float]]
    accuracy: float
    moved: dict[str, bool]
    change: dict[str, float | None]
    adapter_bytes: int
    merged_parameters: int
    proofs: Proofs

    def as_json(self, base: int) -> dict[str, Any]:
        """The library's part of results.json; `base` is the number of parameters of the base."""
        return {
            "parameters": {
                "base": base,
                **self.counts._asdict(),
                "with_full_layer": self.with_full_layer._asdict(),
                "merged": self.merged_parameters,
            },
            "losses": self.losses,
            "accuracy": self.accuracy,
            "moved": self.moved,
            "change": self.change,
            "adapter_bytes": self.adapter_bytes,
            "proofs": self.proofs._asdict(),
        }


@dataclass(frozen=True, kw_only=True)
class WalkResult(LoRAResult):
    """Figures and proofs of one run.

    Attributes:
        base_parameters: The number of parameters of the net.
        base_bytes: Size of the net's own tensor file.
        pretrain: Mean loss of each pretraining epoch.
        pretrain_accuracy: Share of the first task's test rows that the base labels right.
        base_accuracy: Share of the downstream task's test rows that the base labels right.
        ours: fastlora's figures and proofs.
        peer: The peer's; None if none was asked for.
    """

    options: WalkOptions
    base_parameters: int
    base_bytes: int
    pretrain: list[float]
    pretrain_accuracy: float
    base_accuracy: float
    ours: Walk
    peer: Walk | None

    @property
    def walks(self) -> dict[str, Walk]:
        """{library: its `Walk`}, fastlora first."""
        peer = {} if self.peer is None else {str(self.options.peer): self.peer}
        return {"fastlora": self.ours, **peer}

    @property
    def proved(self) -> bool:
        """Whether every promise holds, the peer's included."""
        return all(all(walk.proofs) for walk in self.walks.values())

    def figures(self) -> dict[str, Any]:
        """The results of the job in JSON's types: fastlora's at the top level, the peer's under "peer"."""
        ours = self.ours.as_json(self.base_parameters)
        return {
            "path": self.path and self.path._asdict(),
            **ours,
            "losses": {"pretrain": self.pretrain, **self.ours.losses},
            "accuracy": {
                "pretrain": self.pretrain_accuracy,
                "downstream_before": self.base_accuracy,
                "downstream": self.ours.accuracy,
            },
            "base_bytes": self.base_bytes,
            "peer": self.peer and self.peer.as_json(self.base_parameters),
        }
