"""The examples for torchrun: they run as they stand, and survive the death of a worker."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
EVERY = 5


def launch(example, out, steps, log):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    arguments = ["--steps", str(steps), "--every", str(EVERY), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, *torchrun, ROOT / "examples" / example, *arguments],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def workers(launcher):
    """Process ids of the examples that a torchrun started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers are found by Linux's /proc")
@pytest.mark.parametrize(
    ("example", "checkpoint", "steps"),
    [
        ("ddp_digits.py", "checkpoint.pt", 40),
        ("fsdp_llama.py", "latest", 30),
    ],
)
def test_a_run_whose_worker_dies_ends_with_the_losses_of_an_undisturbed_one(
    tmp_path, example, checkpoint, steps
):
    logs = {name: tmp_path / f"{name}.txt" for name in ("undisturbed", "killed")}
    with logs["undisturbed"].open("w") as log:
        launcher = launch(example, tmp_path / "undisturbed", steps, log)
        assert launcher.wait() == 0, logs["undisturbed"].read_text()
    with logs["killed"].open("w") as log:
        launcher = launch(example, tmp_path / "killed", steps, log)
        while launcher.poll() is None and not (tmp_path / "killed" / checkpoint).exists():
            time.sleep(0.005)
        os.kill(workers(launcher)[-1], signal.SIGKILL)
        assert launcher.wait() == 0, logs["killed"].read_text()
    assert "goes on at step" in logs["killed"].read_text()
    assert "goes on at step" not in logs["undisturbed"].read_text()
    undisturbed, killed = (json.loads((tmp_path / name / "losses.json").read_text()) for name in logs)
    assert len(killed) == steps
    assert killed == undisturbed
    assert killed[-1] < killed[0]
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        one, other = ((tmp_path / name / "adapter" / file).read_bytes() for name in logs)
        assert one == other
