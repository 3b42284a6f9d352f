"""Checkpoints of torch.distributed.checkpoint that name A and B of "default" as they were once called."""

from __future__ import annotations

from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata

from fastlora.layer.adapter import DEFAULT

_NOW, _BEFORE = f".adapters.{DEFAULT}.lora_", ".lora_"


class LoadPlanner(DefaultLoadPlanner):
    """torch's planner, for `torch.distributed.checkpoint.load`, that also finds `lora_A` of before."""

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """torch's; what is wanted by a name of now and saved by that of before is asked for by the latter."""
        super().set_up_planner(state_dict, metadata, is_coordinator)
        saved = {} if metadata is None else metadata.state_dict_metadata
        renamed = {now: now.replace(_NOW, _BEFORE) for now in self.state_dict if now not in saved}
        self._renamed = {now: before for now, before in renamed.items() if before in saved}
        for now, before in self._renamed.items():
            self.state_dict[before] = self.state_dict.pop(now)
            self.mappings[before] = self.mappings.pop(now)

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """torch's; the names in an optimizer's groups stay the model's."""
        if not (self._renamed and read_item.dest_index.fqn.endswith(".params")):
            super().load_bytes(read_item, value)
