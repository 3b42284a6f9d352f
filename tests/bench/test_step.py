"""A net's training step: what moves, what does not, and what it holds."""

import pytest
import torch

from bench.methods import FROZEN, FULL, IN_NETS
from bench.step import ADAMS, Trainer
from tests.bench.rows import build, small_task
from tests.bench.test_check import tunable

# Of PEFT and of what it imports, not of ours.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("name", IN_NETS)
def test_a_step_moves_what_is_trained_and_nothing_else(name):
    method, task = tunable(name)
    tuned = method.tune(task.build(), task.names, task.update)
    before = {id(p): p.detach().clone() for p in tuned.model.parameters()}
    trainer = Trainer(tuned, task)
    trainer.step()
    trainer.step()  # B starts at 0, so that A moves with the second step
    if method.trains == "AB":
        assert list(tuned.trained) == [f"{name}.{letter}" for name in task.names for letter in "AB"]
    moved = {id(p) for p in tuned.model.parameters() if not torch.equal(p, before[id(p)])}
    assert moved == {id(tensor) for tensor in tuned.trained.values()}
    assert all(p.grad is None for p in tuned.model.parameters())


def test_a_frozen_nets_gradients_run_back_to_the_first_layer():
    task, outputs = small_task(), []
    model = FROZEN.tune(task.build(), task.names, task.update).model
    model[0].register_forward_hook(lambda layer, inputs, y: outputs.append(y))
    task.run(model, task.batches[0]).loss.backward()
    assert outputs[0].grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_way_to_compute_adam_takes_the_same_steps():
    task, moved = small_task(), {}
    for adam in ADAMS:
        trainer = Trainer(FULL.tune(task.build(), task.names, task.update), task, adam)
        trainer.step()
        trainer.step()
        moved[adam] = [p.detach().clone() for p in trainer.tuned.model.parameters()]
    for adam in ("foreach", "loop"):
        torch.testing.assert_close(moved[adam], moved["fused"])
    start = list(task.build().parameters())
    assert not any(torch.equal(a, b) for a, b in zip(start, moved["fused"], strict=True))


def test_a_trainer_holds_weights_and_adams_state_and_goes_forward_first():
    task = small_task()
    trainer = Trainer(FULL.tune(build(), task.names, task.update), task)
    weights = sum(p.nbytes for p in trainer.tuned.model.parameters())
    assert trainer.held_bytes() == weights
    with pytest.raises(RuntimeError, match="must follow a forward pass"):
        trainer.backward()
    trainer.step()
    assert trainer.held_bytes() == 3 * weights + 4 * len(trainer.tuned.trained)
