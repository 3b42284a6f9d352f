"""The training loop."""

import itertools

import pytest
import torch
from torch import nn

from fastlora.recipes import training
from fastlora.recipes.digits import Digits


def tiny(count=25):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
    return Digits(images, torch.arange(count) % 10)


def fit(net, digits, **options):
    chosen = {"batches": 5, "generator": torch.Generator().manual_seed(0), "what": "", "rate": 0.1, **options}
    return training.fit(net, net.parameters(), digits, **chosen)


def test_each_pass_visits_every_digit_once_in_a_new_order():
    batches = list(itertools.islice(training._shuffled_batches(25, 10, torch.Generator().manual_seed(0)), 6))
    assert [len(batch) for batch in batches] == [10, 10, 5] * 2
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(25))
    assert first.tolist() != second.tolist()


def test_a_loss_is_that_of_its_batch_before_the_step():
    digits, net = tiny(10), nn.Linear(784, 10)
    x, labels = digits.rows(torch.device("cpu"), torch.float32)
    before = nn.functional.cross_entropy(net(x), labels).item()
    assert fit(net, digits, batches=1)[0] == pytest.approx(before, rel=4 * torch.finfo(torch.float32).eps)


def test_a_falling_rate_ends_in_small_steps():
    digits, net, weights = tiny(10), nn.Linear(784, 10), []

    def track(items, what, total):
        for item in items:
            weights.append(net.weight.detach().clone())
            yield item
        weights.append(net.weight.detach().clone())

    fit(net, digits, batches=8, schedule=training.falling, track=track)
    steps = [(after - before).abs().max().item() for before, after in itertools.pairwise(weights)]
    assert steps[-1] < steps[0] / 4
    assert [training.falling(done / 4) for done in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_the_thread_settings_are_put_back():
    threads, net = torch.get_num_threads(), nn.Linear(784, 10)
    nn.init.constant_(net.weight, float("nan"))
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(FloatingPointError):
            fit(net, tiny())
        assert torch.get_num_threads() == threads + 1
        assert not training._denormals_are_zero()
    finally:
        torch.set_num_threads(threads)


def test_flushing_of_denormals_that_was_on_stays_on():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        fit(nn.Linear(784, 10), tiny(), batches=1)
        assert training._denormals_are_zero()
    finally:
        torch.set_flush_denormal(False)


def test_a_score_counts_what_is_wrong_by_digit():
    class AlwaysFour(nn.Linear):
        def forward(self, x):
            return nn.functional.one_hot(torch.full((len(x),), 4), 10).double()

    digits = tiny(25)
    result = training.score(AlwaysFour(1, 1), digits, what="")
    assert result.wrong == [3, 3, 3, 3, 0, 2, 2, 2, 2, 2]
    assert result.accuracy == 1 - 22 / 25
