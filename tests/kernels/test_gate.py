"""The tile table compiles for its targets, and the gate that says so can say no."""

import os
import subprocess
import sys

import pytest

from fastlora_kernels import configs, gate, offline


@pytest.mark.parametrize("architecture", offline.TARGETS)
def test_every_entry_compiles_within_the_gate_for_its_targets(architecture):
    # A process of its own: TRITON_INTERPRET replaces the kernels by interpreted ones in this one.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-m", "fastlora_kernels.gate", architecture],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    entries = sum(name == architecture for name, _, _ in configs.TABLE)
    assert len(done.stdout.splitlines()) > 2 * entries * len(offline.TARGETS[architecture])


def test_every_architecture_of_the_table_has_targets_and_a_limit():
    architectures = {name for name, _, _ in configs.TABLE}
    assert architectures == set(offline.TARGETS) == set(configs.SHARED_MEMORY)


PTX = """
    cp.async.bulk.tensor wgmma.mma_async
    st.global.b32
    bar.sync 0;
    red.global.gpu.release.add.u32
    ld.global.gpu.acquire.b32
    bar.sync 0;
    ld.global.cg.b32
"""


def faults(**changed):
    entry = configs.TABLE["sm_90", "half", "many"]
    case = gate.Case(
        "sm_90",
        "half",
        "many",
        "forward",
        entry.forward,
        offline.Variant(tma=True),
        offline.TARGETS["sm_90"][0],
    )
    made = offline.Resources(shared=1024, registers=128, spill=0, assembly=PTX)
    return gate.faults(case, made._replace(**changed))


def test_a_sound_kernel_has_no_fault():
    assert faults() == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"spill": 8}, "spills 8 bytes"),
        ({"shared": 1 << 20}, "takes 1048576 bytes of shared memory"),
        ({"assembly": PTX.replace("wgmma.mma_async", "")}, "has no wgmma"),
        ({"assembly": PTX.replace("cp.async.bulk.tensor", "")}, "loads nothing through TMA"),
        ({"assembly": PTX.replace("red.global.gpu.release.add", "red.add")}, "has no release"),
        ({"assembly": PTX.replace("gpu.acquire", "relaxed")}, "has no gpu.acquire"),
        ({"assembly": PTX.replace("bar.sync 0;\n    red", "red")}, "publishes without a barrier"),
        ({"assembly": PTX.replace("bar.sync 0;\n    ld", "ld")}, "without a barrier in between"),
        ({"assembly": "ld.global.cg " + PTX}, "reads p before it acquires"),
    ],
    ids=str,
)
def test_a_faulty_kernel_is_named(changed, fault):
    assert any(fault in found for found in faults(**changed))
