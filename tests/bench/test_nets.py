"""Whole nets: every tuner trains what it should, and a wrong one is found out before it is timed."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from bench.ceilings import Ceilings
from bench.effort import effort_on
from bench.nets import FASTLORA, FROZEN, FULL, LORALIB, PARAMETRIZED, PEFT, TUNERS, UNFUSED
from bench.nets.check import check_tuner
from bench.nets.digits import digits_task
from bench.nets.floor import linear_uses, step_floors
from bench.nets.measure import count, measure_task, present, timed_steps, twin
from bench.nets.modes import MODES
from bench.nets.trainer import ADAMS, PARTS, Trainer
from bench.timing import CpuTimer
from fastlora.cost import Problem
from tests.bench.small_net import ROWS, SIZES, build, small_task

CPU = torch.device("cpu")
CEILINGS = Ceilings(1e12, "float32", 1, 1e12, 1)
LAYERS = list(pairwise(SIZES))

# Of PEFT and of what it imports, not of ours.
foreign_warnings = pytest.mark.filterwarnings("default")


def ready(tuner, task):
    why = tuner.why_absent(task.dtype, task.update)
    if why is not None:
        pytest.skip(why)
    return tuner


def wrong_scale(model, names, update):
    return UNFUSED.tune(model, names, update._replace(alpha=1.01 * update.alpha))


def broken(model, names, update):
    raise RuntimeError("out of resources\nand a long explanation")


@foreign_warnings
@pytest.mark.parametrize("tuner", TUNERS.values(), ids=TUNERS)
def test_logits_and_gradients_are_within_the_budget(tuner):
    task = small_task()
    found = check_tuner(ready(tuner, task), task)
    assert found.failure is None
    kinds = {"dA", "dB"} if tuner.adapts else {"dW"} if tuner is FULL else set()
    assert set(found.errors) == {"logits"} | kinds
    assert all(error > 0 for error in found.errors.values())


def test_a_wrong_tuner_fails_its_check_by_name():
    found = check_tuner(replace(UNFUSED, tune=wrong_scale), small_task())
    assert found.failure.startswith("logits: error")


@foreign_warnings
@pytest.mark.parametrize("tuner", TUNERS.values(), ids=TUNERS)
def test_a_step_moves_what_is_trained_and_nothing_else(tuner):
    task = small_task()
    tuned = ready(tuner, task).tune(task.build(), task.names, task.update)
    trained = {id(tensor) for tensor in tuned.trained.values()}
    before = {id(p): p.detach().clone() for p in tuned.model.parameters()}
    trainer = Trainer(tuned, task)
    trainer.step()
    trainer.step()  # B starts at 0, so that A moves with the second step
    moved = {id(p) for p in tuned.model.parameters() if not torch.equal(p, before[id(p)])}
    assert moved == trained
    assert all(p.grad is None for p in tuned.model.parameters())


def test_every_lora_tuner_trains_a_and_b_of_each_layer():
    task = small_task()
    wanted = {}
    for name, (K, N) in zip(task.names, LAYERS, strict=True):
        wanted |= {f"{name}.A": (3, K), f"{name}.B": (N, 3)}
    for tuner in (UNFUSED, PARAMETRIZED, FASTLORA):
        tuned = tuner.tune(task.build(), task.names, task.update)
        assert {name: tuple(tensor.shape) for name, tensor in tuned.trained.items()} == wanted


def test_a_frozen_nets_gradients_run_back_to_the_first_layer():
    task = small_task()
    model = FROZEN.tune(task.build(), task.names, task.update).model
    outputs = []
    model[0].register_forward_hook(lambda layer, inputs, y: outputs.append(y))
    task.run(model, task.batches[0]).loss.backward()
    assert outputs[0].grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_way_to_compute_adam_takes_the_same_steps():
    task, moved, operators = small_task(), {}, set()
    for adam in ADAMS:
        trainer = Trainer(FULL.tune(task.build(), task.names, task.update), task, adam)
        trainer.step()
        trainer.step()
        moved[adam] = [p.detach().clone() for p in trainer.tuned.model.parameters()]
        operators.add(count(trainer, CPU).launches)
    assert len(operators) == len(ADAMS)
    for adam in ("foreach", "loop"):
        torch.testing.assert_close(moved[adam], moved["fused"])
    start = list(task.build().parameters())
    assert not any(torch.equal(one, other) for one, other in zip(start, moved["fused"], strict=True))


def test_backward_needs_a_forward_pass():
    trainer = Trainer(FULL.tune(build(), [], small_task().update), small_task())
    with pytest.raises(RuntimeError, match="must follow a forward pass"):
        trainer.backward()


def test_held_bytes_are_weights_and_adams_state():
    task = small_task()
    trainer = Trainer(FULL.tune(build(), task.names, task.update), task)
    weights = sum(p.nbytes for p in trainer.tuned.model.parameters())
    assert trainer.held_bytes() == weights
    trainer.step()
    steps = 4 * len(trainer.tuned.trained)
    assert trainer.held_bytes() == 3 * weights + steps


def test_a_twin_lies_in_the_same_memory_and_freezes_apart():
    model = build()
    copy = twin(model)
    copy.requires_grad_(False)
    for one, other in zip(model.parameters(), copy.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert one.requires_grad
    copy[0] = nn.Identity()
    assert isinstance(model[0], nn.Linear)


def test_the_parts_of_steps_are_timed_in_turn_each_led_in_by_a_whole_step():
    ran = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def parts(self):
            return {part: lambda part=part: ran.append(self.name + part[0]) for part in PARTS}

        def step(self):
            ran.append(self.name)

    times = timed_steps({name: Fake(name) for name in "xy"}, 2, CpuTimer)
    assert " ".join(ran) == "x xf xb xo y yf yb yo y yf yb yo x xf xb xo"
    assert {name: {part: len(t) for part, t in own.items()} for name, own in times.items()} == {
        name: dict.fromkeys(("forward", "backward", "optimizer", "step"), 2) for name in "xy"
    }
    for own in times.values():
        assert own["step"][0] >= own["forward"][0] + own["backward"][0] + own["optimizer"][0]


def test_the_floor_is_that_of_every_layer_but_for_the_gradient_of_the_data():
    uses = linear_uses(small_task())
    assert [use.problem[:4] for use in uses] == [(ROWS, K, N, 3) for K, N in LAYERS]
    assert [use.needs_dx for use in uses] == [False, True, True]
    problem = Problem(ROWS, *LAYERS[0], 3, torch.float32, torch.float32)
    with_dx, without = problem.backward(), uses[0].backward()
    K, N = LAYERS[0]
    assert with_dx.flops - without.flops == 2 * ROWS * (K * N + 3 * K)
    floors = step_floors(uses, CEILINGS)
    assert floors["step"].flops == sum((use.forward().flops + use.backward().flops) for use in uses)
    assert floors["step"].us == pytest.approx(floors["forward"].us + floors["backward"].us)


def test_a_layer_that_is_not_adapted_counts_as_the_frozen_one_it_is():
    uses = linear_uses(small_task(names=["0"]))
    assert [(use.problem.r, use.needs_dx) for use in uses] == [(3, False), (0, True), (0, True)]
    first = linear_uses(small_task(names=["2"]))[0]
    assert (first.problem.r, first.backward()) == (0, (0, 0))


def measured(*tuners, mode="eager"):
    task = small_task()
    return measure_task(
        "mnist", task, task, mode, "fused", tuners, CEILINGS, effort_on(CPU, 2)._replace(warm_up_rounds=1)
    )


def test_every_tuner_gets_a_row_for_each_part_and_the_step():
    found = measured(FROZEN, FASTLORA)
    assert [(row.method, row.phase) for row in found.rows] == [
        (name, part) for name in ("frozen", "fastlora") for part in (*PARTS, "step")
    ]
    assert not found.problems
    whole = found.rows[-1]
    assert (whole.model, whole.shape, len(whole.samples_us)) == ("small", {"batch": ROWS, "r": 3}, 2)
    assert whole.saved_bytes > 0
    assert whole.launches > 0
    assert whole.floor_us > 0
    assert found.rows[-2].floor_us is None


def test_a_wrong_tuner_is_not_timed_and_one_that_raises_is_a_problem():
    found = measured(FROZEN, replace(UNFUSED, tune=wrong_scale), replace(FASTLORA, tune=broken))
    assert {row.method for row in found.rows} == {"frozen"}
    assert [check["failure"] is None for check in found.checks] == [True, False]
    assert found.problems == ["mnist small, eager, checking fastlora: RuntimeError: out of resources"]


def test_checkpointing_what_is_no_transformers_model_is_a_problem():
    (problem,) = measured(FROZEN, mode="checkpoint").problems
    assert "must be a Transformers model" in problem


def test_what_a_step_saves_is_its_inputs_and_outcome():
    task = small_task()
    full, frozen = (
        count(Trainer(tuner.tune(build(), task.names, task.update), task), CPU) for tuner in (FULL, FROZEN)
    )
    inputs = sum(batch.nbytes for batch in [task.batches[0]["x"]])
    assert full.saved_bytes - frozen.saved_bytes == inputs
    assert full.peak_bytes is None


def test_tuners_that_cannot_run_are_absent_with_a_reason():
    mixed = small_task(dtype=torch.bfloat16)
    tuners, absent = present(["fastlora", "parametrized"], mixed)
    assert [tuner.name for tuner in tuners] == ["fastlora"]
    assert absent == {"parametrized": "its A and B take the weight's dtype"}
    dropped = mixed.update._replace(dropout=0.1)
    assert "no input to drop" in PARAMETRIZED.why_absent(torch.float32, dropped)


@pytest.mark.parametrize(("tuner", "package"), [(PEFT, "peft"), (LORALIB, "loralib")])
def test_a_library_that_is_not_installed_is_named(tuner, package, monkeypatch):
    monkeypatch.setattr(f"bench.nets.{package}_library.find_spec", lambda name: None)
    task = small_task()
    assert tuner.why_absent(task.dtype, task.update) == f"{package} is not installed"


def test_the_digits_of_a_batch_do_not_keep_all_digits_in_memory():
    task = digits_task(CPU)
    batch = task.batches[0]
    assert batch["x"].shape == (10, 784)
    assert batch["x"].untyped_storage().nbytes() == batch["x"].nbytes
    assert set(batch["labels"].tolist()) == {9}


@foreign_warnings
@pytest.mark.parametrize("mode", ["eager", "checkpoint"])
def test_a_llama_is_tuned_in_every_layer_but_its_head(mode):
    pytest.importorskip("transformers")
    from bench.nets.llama import Text, llama_task

    task = llama_task("tiny", Text(1, 8), small_task().update, CPU, torch.float32)
    assert len(task.names) == 2 * 7
    assert "lm_head" not in task.names
    assert check_tuner(FASTLORA, task, MODES[mode]).failure is None
