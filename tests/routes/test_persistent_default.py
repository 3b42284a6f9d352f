"""Where the persistent kernels are the default: where their tiles fill the multiprocessors."""

import pytest
import torch

from fastlora.formula.operands import EVERYTHING
from fastlora.routes import decide, persistent
from fastlora.routes.plan import plan_for
from fastlora.tuning import tuner
from fastlora.tuning.choices_file import write_choices
from fastlora.tuning.machine import Machine
from fastlora.tuning.report import Request
from fastlora_kernels.choice_content import PERSISTENT, VENDOR
from tests.routes.test_persistent import DEVICE, FEW, FP32, PROBLEM, file_of, routes


def test_where_their_tiles_fill_the_gpu_they_are_taken_without_a_choice(on_sm_90, monkeypatch):
    write_choices(file_of(FEW), on_sm_90)
    assert routes() == (PERSISTENT, PERSISTENT)
    assert "fastest for so many tiles" in decide.decide_for(PROBLEM, DEVICE).forward.why
    assert routes(setting="triton") == ("triton", "triton")
    assert routes(needs=EVERYTHING._replace(dx=False)) == (PERSISTENT, "triton")
    assert routes(dropout=0.5) == routes(aligned=False) == ("triton", "triton")
    assert routes(gpu="B200", architecture="sm_100") == ("triton", "triton")
    write_choices(file_of(code="vendor"), on_sm_90)
    decide.reload_tables()
    assert routes() == ("vendor", "vendor")
    # Of a GPU with fewer multiprocessors, which they fill less.
    write_choices(file_of(FEW), on_sm_90)
    monkeypatch.setattr("fastlora.routes.architecture.multiprocessors", lambda device: 114)
    decide.reload_tables()
    assert routes(PROBLEM._replace(M=2048)) == ("triton", "triton")
    assert routes(PROBLEM._replace(M=2048), gpu="H100", architecture="sm_90") == ("triton", PERSISTENT)


@pytest.mark.parametrize(
    ("changed", "multiprocessors", "taken"),
    [
        # 1024 tiles in 8 waves of 132, 97 % full.
        ({}, None, (True, True)),
        # With up to three waves forward only where K or N is short.
        ({"M": 1024}, None, (False, True)),
        ({"M": 3072}, None, (False, True)),
        ({"M": 4096}, None, (True, True)),
        ({"M": 1024, "N": 2048}, None, (False, True)),
        ({"M": 2048, "N": 2048}, None, (True, True)),
        # The last wave of 132 has 12 tiles; of 114 there are 30 in it.
        ({"M": 1152}, None, (False, False)),
        ({"M": 2304}, None, (False, False)),
        ({"M": 2304}, 114, (False, True)),
        ({"M": 2048}, 114, (False, False)),
        # One wave, 84 % full, from 768 rows on.
        ({"M": 768}, 114, (False, True)),
        ({"M": 767}, 114, (False, False)),
        ({"M": 768}, None, (False, False)),
        # y has N columns and dx K.
        ({"M": 2048, "N": 1024}, None, (False, True)),
        ({"M": 2048, "K": 1024}, None, (True, False)),
        # What they do not take.
        ({"r": 65}, None, (False, False)),
        ({"adapter_dtype": FP32, "r": 33}, None, (False, False)),
        ({"N": 4092}, None, (False, False)),
    ],
    ids=str,
)
def test_they_are_the_default_where_tiles_fill_whole_waves(changed, multiprocessors, taken):
    problem, plain = PROBLEM._replace(**changed), {"dropout": False, "aligned": True}

    def found(architecture="sm_90", **options):
        return tuple(
            persistent.is_default(way, architecture, problem, multiprocessors, **{**plain, **options})
            for way in ("forward", "backward")
        )

    assert found() == taken
    for other in (
        {"dropout": True},
        {"aligned": False},
        {"architecture": "sm_100"},
        {"architecture": "sm_80"},
    ):
        assert found(**other) == (False, False)


def test_with_another_triton_they_are_no_default(monkeypatch):
    monkeypatch.setattr(persistent, "triton_version", lambda: (3, 12, 1))
    assert not persistent.is_default("forward", "sm_90", PROBLEM, None, dropout=False, aligned=True)


def test_tuning_measures_against_what_is_taken_without_it(monkeypatch):
    monkeypatch.setattr(tuner, "architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(tuner, "multiprocessors", lambda device: 132)
    here = Machine(torch.device("cpu"), "a processor")
    default, entrants = tuner._entrants(Request(PROBLEM), "forward", here)
    assert default == entrants[0] == PERSISTENT
    assert entrants.count(PERSISTENT) == 1
    assert VENDOR in entrants
    # 1152 rows: their last wave would have 12 tiles.
    for request in (Request(PROBLEM, dropout=True), Request(PROBLEM._replace(M=1152))):
        default, entrants = tuner._entrants(request, "forward", here)
        assert default == entrants[0] == plan_for("forward", "sm_90", request.problem).tile
    # Square tiles are the plan's, and these kernels fill nearly four waves.
    default, entrants = tuner._entrants(Request(PROBLEM._replace(M=1152, N=14_336)), "forward", here)
    assert (default, entrants[0], entrants[-1]) == (PERSISTENT, PERSISTENT, VENDOR)
