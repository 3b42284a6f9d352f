"""The timing core: order, quartiles, ratios, warm-up, captures."""

import contextlib
from types import SimpleNamespace

import pytest

from fastlora.measuring import timing
from fastlora.measuring.timing import (
    WHOLE,
    CpuTimer,
    Work,
    captured_in_turn,
    interleaved,
    quartiles,
    ratio,
    rounds_within,
    warm_up,
)


class FakeTimer:
    """Reads a list of times instead of a clock."""

    leads_in = False

    def __init__(self, times):
        self.times = times

    def __enter__(self):
        """A block begins."""

    def __exit__(self, *_):
        """A block ends."""

    def microseconds(self):
        return self.times


def test_quartiles_cut_a_sample_in_four():
    assert quartiles([5, 1, 4, 2, 3]) == (2, 3, 4)


def test_quartiles_lie_between_two_samples_where_none_is_in_the_middle():
    assert quartiles([1, 2, 3, 4]) == (1.75, 2.5, 3.25)


def test_one_sample_is_its_own_quartiles():
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_no_sample_is_an_error():
    with pytest.raises(ValueError, match="samples must hold at least one"):
        quartiles([])


def test_ratios_are_taken_pair_by_pair():
    """Rounds that were slow for both do not widen the ratio: it is 2 in each."""
    assert ratio([2, 20, 200], [1, 10, 100]) == (2, 2, 2)


def test_samples_of_different_rounds_have_no_ratio():
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0])


class Stopwatch(FakeTimer):
    """What a list gained while it ran, instead of a time."""

    @classmethod
    def watching(cls, ran):
        def new():
            timer = cls([])
            timer.ran = ran
            return timer

        return new

    def __enter__(self):
        self.start = len(self.ran)

    def __exit__(self, *_):
        self.times.append("".join(self.ran[self.start :]))


def works(ran, names, *, prepared=False):
    """Works that note their names as they run, and in capitals what runs before them."""
    return {
        name: Work.of(
            lambda name=name: ran.append(name),
            (lambda name=name: ran.append(name.upper())) if prepared else timing.nothing,
        )
        for name in names
    }


def test_works_run_in_turn_and_the_order_turns_round():
    ran = []
    times = interleaved(works(ran, "abc"), 3, Stopwatch.watching(ran))
    assert "".join(ran) == "abccbaabc"
    assert times == {name: {WHOLE: [name] * 3} for name in "abc"}


def test_on_the_host_each_work_is_led_in_by_itself_untimed():
    ran = []
    times = interleaved(works(ran, "ab", prepared=True), 2, CpuTimer)
    assert "".join(ran) == "AaAaBbBbBbBbAaAa"
    assert {name: len(own[WHOLE]) for name, own in times.items()} == {"a": 2, "b": 2}
    assert all(time >= 0 for own in times.values() for time in own[WHOLE])


def test_what_runs_before_a_work_runs_each_time_and_is_not_timed():
    ran = []
    times = interleaved(works(ran, "ab", prepared=True), 2, Stopwatch.watching(ran))
    assert "".join(ran) == "AaBbBbAa"
    assert times == {"a": {WHOLE: ["a", "a"]}, "b": {WHOLE: ["b", "b"]}}


def test_parts_are_timed_each_and_all_together():
    ran = []
    parts = {part: lambda part=part: ran.append(part) for part in "xyz"}
    times = interleaved({"a": Work(parts), "b": Work.of(int)}, 2, Stopwatch.watching(ran))
    assert "".join(ran) == "xyzxyz"
    assert times == {
        "a": {WHOLE: ["xyz"] * 2, **{part: [part] * 2 for part in "xyz"}},
        "b": {WHOLE: [""] * 2},
    }


@pytest.mark.parametrize(("seconds", "rounds"), [(1.0, 5), (10.0, 30), (0.1, 3)])
def test_rounds_fill_a_time_within_bounds(seconds, rounds):
    found = rounds_within(
        seconds, {"a": Work.of(int), "b": Work.of(int)}, lambda: FakeTimer([100_000.0]), fewest=3, most=30
    )
    assert found == rounds


def test_warm_up_ends_with_two_rounds_of_one_length():
    rounds = iter([9.0, 4.0, 2.0, 2.01, 1.0])
    assert warm_up({"a": Work.of(int)}, 10, lambda: FakeTimer([next(rounds)])) == 4


def test_warm_up_ends_where_it_must_though_times_still_fall():
    rounds = iter([16.0, 8.0, 4.0, 2.0, 1.0])
    assert warm_up({"a": Work.of(int)}, 3, lambda: FakeTimer([next(rounds)])) == 3


class FakeCuda:
    """Notes on which stream what is captured."""

    def __init__(self):
        self.noted = []
        self.now = None

    def current_stream(self):
        return self.Stream()

    def Stream(self):
        return SimpleNamespace(wait_stream=lambda other: None)

    @contextlib.contextmanager
    def stream(self, stream):
        self.now = ("eager", stream)
        yield
        self.now = None

    def CUDAGraph(self):
        graph = SimpleNamespace()
        graph.replay = lambda: self.noted.append(("replay", graph))
        return graph

    @contextlib.contextmanager
    def graph(self, graph, stream):
        self.now = (graph, stream)
        yield
        self.now = None


def test_calls_that_follow_one_another_are_captured_apart_on_the_stream_they_ran_on(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(timing.torch, "cuda", cuda)
    calls = [lambda name=name: cuda.noted.append((name, cuda.now)) for name in "ab"]
    replays = captured_in_turn(*calls)
    assert "".join(name for name, _ in cuda.noted) == "ababab"
    streams = [where[1] for _, where in cuda.noted]
    assert all(stream is streams[0] for stream in streams)
    (_, (first, _)), (_, (second, _)) = cuda.noted[-2:]
    assert first is not second
    for replay in replays:
        replay()
    assert cuda.noted[-2:] == [("replay", first), ("replay", second)]
