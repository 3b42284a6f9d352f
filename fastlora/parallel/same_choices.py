"""Whether all processes of a job take the same choices of `fastlora tune`."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import distributed

from fastlora.routes.architecture import architecture_of
from fastlora.routes.choices import loaded


def check_same_choices(group: distributed.ProcessGroup | None = None) -> None:
    """Raise unless every process reads the same choices for its GPU: call it once, after the process group.

    Processes with other choices compute with other tiles, so that their results differ by rounding, and the
    slowest holds up the others. All processes must call it.

    Args:
        group: The processes; None means all.

    Raises:
        ValueError: If they differ; the message says which ranks have which file.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    found = loaded("interpreter" if device is None else architecture_of(device))
    mine = f"{found.path or 'no file'}, {found.why}"
    told: list[tuple[str, str]] = [("", "")] * distributed.get_world_size(group)
    distributed.all_gather_object(told, (found.digest, mine), group=group)
    ranks: dict[str, list[int]] = defaultdict(list)
    for rank, (digest, _) in enumerate(told):
        ranks[digest].append(rank)
    if len(ranks) > 1:
        groups = (f"{', '.join(map(str, own))} ({told[own[0]][1]})" for own in ranks.values())
        raise ValueError(
            f"all processes must read the same choices of `fastlora tune`; ranks {'; ranks '.join(groups)} "
            "differ (copy one file to all machines and set FASTLORA_TUNE_FILE)"
        )
