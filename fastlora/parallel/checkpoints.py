"""Loads checkpoints of torch.distributed.checkpoint that have the old names for A and B of "default".

They were `lora_A` and `lora_B`, and now are `adapters.default.lora_A` and `adapters.default.lora_B`.
"""

from __future__ import annotations

import re
from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata

from fastlora.layer.adapter import DEFAULT

# In a model's state a layer's name comes before; in that of a layer alone nothing does.
_NOW = re.compile(rf"(^|\.)adapters\.{DEFAULT}\.lora_")
_GROUP = re.compile(r"param_groups\.\d+\.params$")


class LoadPlanner(DefaultLoadPlanner):
    """torch's planner for `torch.distributed.checkpoint.load`; it also finds A and B by their old names."""

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """As torch's; a tensor that the checkpoint has under its old name only is looked up by that name."""
        super().set_up_planner(state_dict, metadata, is_coordinator)
        saved = {} if metadata is None else metadata.state_dict_metadata
        renamed = {now: _NOW.sub(r"\1lora_", now) for now in self.state_dict if now not in saved}
        self._renamed = {now: before for now, before in renamed.items() if before in saved}
        for now, before in self._renamed.items():
            self.state_dict[before] = self.state_dict.pop(now)
            if now in self.mappings:  # there are none without flatten_state_dict
                self.mappings[before] = self.mappings.pop(now)

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """As torch's; the parameter names in an optimizer's groups stay the present ones."""
        if not (self._renamed and _GROUP.search(read_item.dest_index.fqn)):
            super().load_bytes(read_item, value)
