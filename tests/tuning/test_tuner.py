"""`fastlora tune`: candidates that are slow, wrong or hang, planted; what is kept."""

import itertools
import sys
import time

import pytest
import torch

from fastlora.formula.cost import Problem
from fastlora.routes import decide
from fastlora.routes.choices import key_of, read_file
from fastlora.tuning import proofs, tuner
from fastlora.tuning.contest import Contest
from fastlora.tuning.machine import Machine
from fastlora.tuning.report import Request
from fastlora.tuning.trial import Job
from fastlora.tuning.tuner import Means, tune_for
from fastlora_kernels.choice_content import VENDOR
from fastlora_kernels.tables import Tile
from tests.cases import quick_rows

CPU = torch.device("cpu")
PROBLEM = Problem(24, 24, 16, 4, torch.float16, torch.float32)
HERE = Machine(CPU, "a test")


def means(speeds=lambda place, entrant: 100.0, wrong=lambda tile: None):
    """A prover that turns down what `wrong` says, and a clock that reads `speeds`."""

    def times(job, entrants):
        return {one: [speeds(place, one)] * 3 for place, one in enumerate(entrants)}

    return Means(lambda job, tiles: [wrong(tile) for tile in tiles], times)


def run(path, means, **options):
    return tune_for([Request(PROBLEM)], HERE, path=path, means=means, **options)


def choice_of(path, direction="forward", problem=PROBLEM):
    return read_file(path).entries[key_of(direction, problem, False)]


def test_a_faster_tile_is_kept_and_a_gain_within_the_noise_is_not(tmp_path):
    def fast(place, one):
        return {0: 100.0, 1: 96.0, 2: 90.0}.get(place, 100.0) if isinstance(one, Tile) else 100.0

    report = run(tmp_path / "a.json", means(fast))
    third = tuner._entrants(Request(PROBLEM), "forward", HERE)[1][2]
    assert choice_of(tmp_path / "a.json").tile == third
    assert report.found[0].gain == pytest.approx(100 / 90)
    run(tmp_path / "b.json", means(lambda place, one: 97.5 if place == 1 else 100.0))
    default, _ = tuner._entrants(Request(PROBLEM), "forward", HERE)
    found = choice_of(tmp_path / "b.json")
    assert (found.tile, found.gain) == (default, 1.0)


def test_the_vendors_products_are_kept_where_they_are_the_fastest(tmp_path):
    fast = means(lambda place, one: 50.0 if one == VENDOR else 100.0)
    run(tmp_path / "a.json", fast)
    assert choice_of(tmp_path / "a.json").code == "vendor"
    tune_for([Request(PROBLEM, dropout=True)], HERE, path=tmp_path / "b.json", means=fast)
    (forward, backward) = read_file(tmp_path / "b.json").entries.values()
    assert forward.code == backward.code == "vendor"


def test_the_default_is_the_tables_whatever_was_chosen_before(tmp_path, monkeypatch):
    default, _ = tuner._entrants(Request(PROBLEM), "forward", HERE)
    monkeypatch.setenv("FASTLORA_TUNE_FILE", str(tmp_path / "a.json"))
    # On a GPU a choice decides the route as well as the tile.
    monkeypatch.setattr(decide, "route_on", lambda *_, **__: decide.Route("triton", "it is a GPU"))
    run(tmp_path / "a.json", means(lambda place, one: 50.0 if one == VENDOR else 100.0))
    assert decide.decide_for(PROBLEM, CPU, setting="auto").forward.name == "vendor"
    again, entrants = tuner._entrants(Request(PROBLEM), "forward", HERE)
    assert again == entrants[0] == default


def test_what_is_wrong_is_listed_and_never_chosen_even_the_default(tmp_path):
    default, _ = tuner._entrants(Request(PROBLEM), "forward", HERE)
    report = run(
        tmp_path / "a.json",
        means(
            lambda place, one: 1.0 if one == default else 100.0,
            lambda tile: "y: error 1 exceeds the budget" if tile == default else None,
        ),
    )
    assert choice_of(tmp_path / "a.json").tile != default
    assert any("y: error 1" in line for line in report.failures)
    assert report.found[0].default_us is None
    assert "not right, and not used" in str(report)


def test_where_no_candidate_is_right_nothing_is_kept(tmp_path):
    _, entrants = tuner._entrants(Request(PROBLEM, dropout=True), "forward", HERE)
    nothing = means(wrong=lambda tile: "wrong")
    report = tune_for([Request(PROBLEM, dropout=True)], HERE, path=tmp_path / "a.json", means=nothing)
    assert report.found == []
    assert not (tmp_path / "a.json").exists()
    assert len(report.failures) >= len(entrants)


def test_ctrl_c_keeps_what_was_measured_and_nothing_is_written_before_the_end(tmp_path):
    path, seen = tmp_path / "a.json", []

    def progress(done, total, text):
        seen.append(path.exists())
        if done == 1:
            raise KeyboardInterrupt

    report = run(path, means(), progress=progress)
    assert report.interrupted
    assert seen == [False, False]
    assert len(report.found) == 1
    assert list(read_file(path).entries) == [key_of("forward", PROBLEM, False)]


def test_the_time_that_was_given_is_kept_to(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    report = run(tmp_path / "a.json", means(), minutes=1)
    assert (len(report.found), len(report.skipped)) == (1, 1)
    assert "backward 24x24->16 r4" in report.skipped[0]


def test_choices_that_are_still_valid_stay_and_others_go(tmp_path):
    path, other = tmp_path / "a.json", PROBLEM._replace(K=48)
    run(path, means())
    tune_for([Request(other)], HERE, path=path, means=means())
    assert {key.K for key in read_file(path).entries} == {24, 48}
    tune_for([Request(other)], Machine(CPU, "another GPU"), path=path, means=means())
    assert {key.K for key in read_file(path).entries} == {48}
    path.write_text("{")
    run(path, means())
    assert {key.K for key in read_file(path).entries} == {24}


def test_a_folder_that_cannot_be_written_is_an_error_and_says_so(tmp_path):
    (tmp_path / "file").write_text("")

    def measured(job, entrants):
        raise AssertionError("what is measured would be lost")

    never = means()._replace(prove=measured)
    with pytest.raises(OSError, match=r"cannot be written to .*file.* FASTLORA_TUNE_FILE"):
        run(tmp_path / "file" / "a.json", never)


CHILD = """
import json, sys, time
tiles = json.loads(sys.argv[1])[-1]
for rows, *rest in tiles:
    if rows == 32:
        time.sleep(600)
    if rows == 64:
        sys.exit("a fault of the GPU")
    print("a line of a library", flush=True)
    print(json.dumps({"failed": "wrong" if rows == 128 else None}), flush=True)
"""


def test_a_candidate_that_hangs_or_takes_its_process_down_costs_itself_alone():
    tiles = [Tile(rows, 64, 64, 1, 4, 2) for rows in (16, 32, 256, 64, 128, 16)]
    job = Job("cpu", "forward", PROBLEM, False, 2)
    found = proofs.prove(job, tiles, command=(sys.executable, "-c", CHILD), seconds=0.3, start_seconds=5)
    assert found[0] is found[2] is found[5] is None
    assert "not finished" in found[1]
    assert "a fault of the GPU" in found[3]
    assert found[4] == "wrong"


def test_a_job_is_read_as_it_was_written():
    job = Job("cuda", "backward", PROBLEM, True, 200)
    tiles = [Tile(16, 64, 64, 1, 4, 2)]
    assert Job.loads(job.dumps(tiles)) == (job, tiles)


@pytest.mark.parametrize(
    ("direction", "dropout"),
    quick_rows(itertools.product(("forward", "backward"), (0.0, 0.125)), ("backward", 0.125)),
)
def test_a_contest_finds_a_wrong_result_and_other_bits(direction, dropout, monkeypatch):
    torch.manual_seed(0)
    contest = Contest(CPU, direction, PROBLEM, num_sets=1, dropout=dropout, bias=True)
    tile = Tile(16, 64, 64, 2, 4, 1)
    contest.check(tile, repeats=2)
    plain = contest._results

    def spoiled(*given):
        return {name: value * 1.01 for name, value in plain(*given).items()}

    monkeypatch.setattr(contest, "_results", spoiled)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        contest.check(tile)
    runs = iter(range(9))

    def restless(*given):
        return {name: value * (1 + 2e-7 * (next(runs) > 4)) for name, value in plain(*given).items()}

    monkeypatch.setattr(contest, "_results", restless)
    monkeypatch.setattr("fastlora.tuning.contest.assert_within_budget", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="other bits"):
        contest.check(tile, repeats=4)
