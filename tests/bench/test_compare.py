"""Two results files: what is a change, and what is noise."""

import pytest
from click.testing import CliRunner

from bench.compare import FASTER, SAME, SLOWER, compare, judge, main
from fastlora.measuring.timing import Quartiles
from tests.bench.rows import HERE, results, row

BEFORE = (9.0, 10.0, 11.0)


def verdicts(old, new, **options):
    return [change.verdict for change in compare(old, new, **options).changes]


def write(tmp_path, name, content):
    path = tmp_path / name
    content.write(path)
    return str(path)


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ((12, 13, 14), SLOWER),
        ((6, 7, 8), FASTER),
        ((11, 12, 13), SAME),
        ((7, 8, 9), SAME),
        ((1, 10, 99), SAME),
    ],
)
def test_a_change_is_one_whose_quartiles_lie_beside_the_old(new, verdict):
    assert judge(Quartiles(9, 10, 11), Quartiles(*new)) == verdict


def test_rows_are_compared_with_their_like():
    old = results(row(BEFORE), row(BEFORE, mode="graph"), row(BEFORE, dropout=0.1))
    new = results(row((19.0, 20.0, 21.0), mode="graph"), row(BEFORE), row((4.0, 5.0, 6.0), dropout=0.1))
    assert verdicts(old, new) == [SAME, SLOWER, FASTER]


def test_what_slowed_everything_down_is_not_a_change_of_the_ratio():
    old = results(row(BEFORE), row((18.0, 20.0, 22.0), method="peft"))
    new = results(row((18.0, 20.0, 22.0)), row((36.0, 40.0, 44.0), method="peft"))
    assert verdicts(old, new) == [SLOWER, SLOWER]
    assert verdicts(old, new, over="fastlora") == [SAME]
    worse = results(row((18.0, 20.0, 22.0)), row((54.0, 60.0, 66.0), method="peft"))
    (change,) = compare(old, worse, over="fastlora").changes
    assert (change.what, change.old.median, change.new.median, change.verdict) == ("ratio", 2, 3, SLOWER)


def test_counts_have_no_noise():
    old = results(row(BEFORE, saved_bytes=100, launches=7))
    new = results(row(BEFORE, saved_bytes=101, launches=6))
    found = {change.what: change.verdict for change in compare(old, new).changes}
    assert found == {"time": SAME, "saved_bytes": "more", "launches": "fewer"}


def test_rows_without_their_like_are_listed():
    found = compare(results(row(method="peft")), results(row(method="full")))
    assert not found.changes
    assert [len(found.only_old), len(found.only_new)] == [1, 1]
    assert "peft" in found.only_old[0]
    assert "full" in found.only_new[0]


def test_another_device_is_noted():
    elsewhere = HERE._replace(device={**HERE.device, "name": "another"})
    notes = compare(results(row()), results(row(), environment=elsewhere)).notes
    assert len(notes) == 1
    assert "another device" in notes[0]


def test_the_exit_status_tells_whether_something_got_worse(tmp_path):
    old = write(tmp_path, "old.json", results(row(BEFORE, saved_bytes=100)))
    slow = write(tmp_path, "slow.json", results(row((19.0, 20.0, 21.0), saved_bytes=100)))
    same = CliRunner().invoke(main, [old, old])
    assert same.exit_code == 0
    assert "0 changed, 2 within the noise" in same.output
    assert [CliRunner().invoke(main, pair).exit_code for pair in ([old, slow], [slow, old])] == [1, 0]


def test_what_is_no_results_file_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    refused = CliRunner().invoke(main, [str(path), str(path)])
    assert refused.exit_code == 2
    assert "must be results files" in refused.output
