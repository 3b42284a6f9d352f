"""DoRA and groups keep their own kernels where the persistent ones are a layer's default."""

import pytest
import torch

from fastlora import FusedLoRALinear, explain
from fastlora.autograd import dora
from fastlora.formula.grouped import Projection, bundle
from fastlora.formula.operands import EVERYTHING, Operands, checked_base
from fastlora.routes import decide, group_routes
from fastlora.tuning.choices_file import write_choices
from fastlora_kernels.choice_content import PERSISTENT
from tests.routes.test_persistent import BF16, FEW, PROBLEM, file_of

# Decisions need no data, and a CPU's tensors would not come to them.
M, K, N, r = PROBLEM[:4]


def empty(*shape):
    return torch.empty(shape, dtype=BF16, device="meta")


def group_of(*ranks):
    members = [Projection(empty(N, K), None, empty(r, K), empty(N, r)) for r in ranks]
    return bundle(empty(M, K), members)


def names(decision):
    return decision.forward.name, decision.backward.name


def test_a_group_is_one_launch_unless_a_member_was_chosen_to_run_by_itself(on_sm_90):
    write_choices(file_of(FEW), on_sm_90)
    one, *_ = group_of(r).alone()
    assert names(decide.decide(one, setting="auto")) == (PERSISTENT, PERSISTENT)
    route = group_routes.decided(group_of(r, r), "auto")
    assert route.name == "one launch"
    assert [names(one) for one in route.alone] == [("triton", "triton")] * 2

    write_choices(file_of(), on_sm_90)
    decide.reload_tables()
    route = group_routes.decided(group_of(r, r), "auto")
    assert route.name == "in turn"
    assert route.why == (
        "a member was measured to be faster by the vendor's matrix product or the persistent kernels"
    )


def test_members_in_turn_are_layers_alone(on_sm_90):
    write_choices(file_of(FEW), on_sm_90)
    route = group_routes.decided(group_of(r, r, r, 65), "auto")
    assert route.name == "in turn"
    assert [names(one) for one in route.alone] == [(PERSISTENT, PERSISTENT)] * 3 + [("triton", "triton")]


def test_the_columns_of_dora_are_scaled_inside_the_kernel(on_sm_90, monkeypatch):
    fused_dora = pytest.importorskip("fastlora.routes.fused_dora")
    write_choices(file_of(FEW), on_sm_90)
    x, W, A, B = empty(M, K), empty(N, K), empty(r, K), empty(N, r)
    o = Operands(x, checked_base(x, W, None), None, A, B, 1.0, 0.0, None)
    ran = []
    monkeypatch.setattr(dora, "needs_operator", lambda given: False)
    monkeypatch.setattr(fused_dora, "forward", lambda *given: (ran.append("forward"), None, None))
    monkeypatch.setattr(fused_dora, "backward", lambda *given: ran.append("backward"))
    c = torch.empty(N, device="meta")
    *_, decision = dora._forward(o, c, EVERYTHING, "auto", False)
    assert ran == ["forward"]
    dora._gradients(o, empty(M, N), torch.empty(M, r, device="meta"), c, EVERYTHING, "auto", decision)
    assert ran == ["forward", "backward"]


def test_explain_tells_it_of_a_layer_with_dora():
    with torch.device("meta"):
        layers = [
            FusedLoRALinear(K, N, r=r, dtype=BF16, adapter_dtype=BF16, dora=dora) for dora in (False, True)
        ]
    told = [[one.path.name for one in explain((M, K), layer, gpu="H100").passes] for layer in layers]
    assert told == [[PERSISTENT] * 2, ["triton"] * 2]
