"""The MNIST job's options are checked when they are made."""

import pytest
import torch

from fastlora.recipes.mnist.options import MnistOptions


@pytest.mark.parametrize(
    ("option", "value", "error", "message"),
    [
        ("rank", 0, ValueError, "rank must be an int >= 1; got 0"),
        ("rank", 1.5, TypeError, "rank must be an int >= 1; got 1.5"),
        ("alpha", float("nan"), ValueError, "alpha must be a finite number"),
        ("alpha", 0.0, ValueError, "alpha must be a finite number other than 0; got 0.0"),
        ("alpha", None, ValueError, "alpha must be a finite number other than 0; got None"),
        ("digit", 10, ValueError, "digit must be 0 to 9 or 'auto'; got 10"),
        ("digit", -1, ValueError, "digit must be 0 to 9 or 'auto'; got -1"),
        ("digit", "nine", ValueError, "digit must be 0 to 9 or 'auto'; got 'nine'"),
        ("digit", True, ValueError, "digit must be 0 to 9 or 'auto'; got True"),
        ("epochs", 0, ValueError, "epochs must be an int of at least 1; got 0"),
        ("batches", 0, ValueError, "batches must be an int of at least 1; got 0"),
        ("batches", True, TypeError, "batches must be an int of at least 1; got True"),
        ("seed", -1, ValueError, "seed must be an int of at least 0; got -1"),
        (
            "method",
            "peft",
            ValueError,
            "method must be one of fused, reference, parametrize, full; got 'peft'",
        ),
        (
            "dtype",
            torch.int8,
            ValueError,
            "dtype must be one of torch.float32, torch.float64; got torch.int8",
        ),
        ("device", "gpu", ValueError, "device must be one that torch can use here; got 'gpu'"),
        ("device", "cuda:99", ValueError, "device must be one that torch can use here; got 'cuda:99'"),
        ("device", "meta", ValueError, "device must be one that holds data; got 'meta'"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(option, value, error, message):
    with pytest.raises(error) as caught:
        MnistOptions(**{option: value})
    assert str(caught.value).startswith(message)


def test_the_defaults_are_the_notebooks():
    options = MnistOptions()
    assert (options.digit, options.rank, options.alpha, options.batches) == (9, 1, 1.0, 100)
    assert options.method == "fused"


def test_auto_is_a_device_that_works():
    assert torch.empty(1, device=MnistOptions().torch_device()).numel() == 1


def test_each_use_of_the_seed_has_draws_of_its_own():
    first, second = MnistOptions(seed=3), MnistOptions(seed=4)
    draws = {options.generator(use).initial_seed() for options in (first, second) for use in options.USES}
    assert len(draws) == 2 * len(MnistOptions.USES)
    assert first.generator("A").initial_seed() == MnistOptions(seed=3).generator("A").initial_seed()
