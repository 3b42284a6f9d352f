"""The tile table compiles for its targets, and the check that says so can say no."""

import os
import subprocess
import sys

import pytest

from fastlora_kernels.compile_check.compiler import Resources
from fastlora_kernels.compile_check.rules import faults as faults_of
from fastlora_kernels.compile_check.variants import TARGETS, Case, Variant, cases
from fastlora_kernels.tables import ARCHITECTURES, load_table
from tests.cases import quick


@pytest.mark.parametrize("architecture", quick(TARGETS, "sm_90"))
def test_the_entries_that_most_shapes_take_compile_within_the_rules(architecture):
    # A process of its own: TRITON_INTERPRET replaces the kernels by interpreted ones in this one. The other
    # entries are the check's own run, which takes minutes.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-m", "fastlora_kernels.compile_check", architecture, "--only", "half square"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f" {6 * len(TARGETS[architecture])} kernels within the rules" in done.stdout


def test_the_check_takes_every_entry_of_every_table_for_every_target():
    found = {
        (case.architecture, case.kind, case.shape_class, case.direction, case.target)
        for case in cases(list(ARCHITECTURES), every_variant=False)
    }
    entries = [
        len(classes) * len(TARGETS[architecture])
        for architecture in ARCHITECTURES
        for classes in load_table(architecture).entries.values()
    ]
    assert len(found) == 2 * sum(entries)


def test_every_architecture_with_a_table_has_targets():
    assert set(TARGETS) == set(ARCHITECTURES)


PTX = """
    cp.async.bulk.tensor.2d.shared::cta.global wgmma.mma_async cp.async.bulk.tensor.2d.global.shared::cta
    st.global.b32
    bar.sync 0;
    atom.global.gpu.acq_rel.add.u32
    bar.sync 0;
    ld.global.cg.b32
    st.global.b32
    bar.sync 0;
    red.global.gpu.release.add.u32
    ld.global.gpu.acquire.b32
    bar.sync 0;
    ld.global.cg.b32
"""


def after(text, start, old, new):
    """The text with the first `old` after `start` replaced."""
    head, found, tail = text.partition(start)
    return head + found + tail.replace(old, new, 1)


def faults(**changed):
    case = Case(
        "sm_90",
        "half",
        "square",
        "forward",
        load_table("sm_90").entries["half"]["square"].forward,
        Variant(tma=True),
        TARGETS["sm_90"][0],
    )
    made = Resources(shared=1024, registers=128, spill=0, assembly=PTX)
    return faults_of(case, made._replace(**changed))


def test_a_sound_kernel_has_no_fault():
    assert faults() == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"spill": 8}, "spills 8 bytes"),
        ({"shared": 1 << 20}, "takes 1048576 bytes of shared memory"),
        ({"assembly": PTX.replace("wgmma.mma_async", "")}, "has no wgmma"),
        ({"assembly": PTX.replace("shared::cta.global", "")}, "loads nothing through TMA"),
        ({"assembly": PTX.replace("global.shared::cta", "")}, "stores nothing through TMA"),
        ({"assembly": PTX.replace("red.global.gpu.release.add", "red.add")}, "has no release"),
        ({"assembly": PTX.replace("gpu.acquire", "relaxed")}, "has no gpu.acquire"),
        ({"assembly": PTX.replace("acq_rel", "relaxed")}, "has no acq_rel"),
        ({"assembly": PTX.replace("bar.sync 0;\n    red", "red")}, "by release.add without a barrier after"),
        (
            {"assembly": PTX.replace("bar.sync 0;\n    atom", "atom")},
            "by acq_rel.add without a barrier after",
        ),
        (
            {"assembly": after(PTX, "gpu.acquire", "bar.sync", "")},
            "by gpu.acquire without a barrier in between",
        ),
        ({"assembly": after(PTX, "acq_rel", "bar.sync", "")}, "by acq_rel.add without a barrier in between"),
        ({"assembly": "ld.global.cg " + PTX}, "before it acquires"),
    ],
    ids=str,
)
def test_a_faulty_kernel_is_named(changed, fault):
    assert any(fault in found for found in faults(**changed))
