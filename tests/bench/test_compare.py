"""Two results files: what is a change, and what is noise."""

import pytest
from click.testing import CliRunner

from bench.compare import compare, differences, main
from tests.bench.rows import HERE, results, row

BEFORE = (9.0, 10.0, 11.0)
TWICE = (18.0, 20.0, 22.0)


def verdicts(old, new, **options):
    return [change.verdict for change in compare(old, new, **options)]


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ((12, 13, 14), "slower"),
        ((6, 7, 8), "faster"),
        ((11, 12, 13), ""),
        ((7, 8, 9), ""),
        ((1, 10, 99), ""),
    ],
)
def test_a_change_is_one_whose_quartiles_lie_beside_the_old(new, verdict):
    assert verdicts(results(row((9, 9, 10, 11, 11))), results(row((new[0], *new, new[2])))) == [verdict]


def test_rows_are_compared_with_their_like():
    old = results(row(BEFORE), row(BEFORE, mode="graph"), row(BEFORE, dropout=0.1))
    new = results(row(TWICE, mode="graph"), row(BEFORE), row((4.0, 5.0, 6.0), dropout=0.1))
    assert verdicts(old, new) == ["", "slower", "faster"]


def test_what_slowed_everything_down_is_not_a_change_of_the_ratio():
    old = results(row(BEFORE), row(TWICE, method="peft"))
    new = results(row(TWICE), row((36.0, 40.0, 44.0), method="peft"))
    assert verdicts(old, new) == ["slower", "slower"]
    assert verdicts(old, new, over="fastlora") == [""]
    worse = results(row(TWICE), row((54.0, 60.0, 66.0), method="peft"))
    (change,) = compare(old, worse, over="fastlora")
    assert (change.what, change.old.median, change.new.median, change.verdict) == ("ratio", 2, 3, "slower")


def test_counts_have_no_noise():
    old = results(row(BEFORE, saved_bytes=100, launches=7))
    new = results(row(BEFORE, saved_bytes=101, launches=6))
    found = {change.what: change.verdict for change in compare(old, new)}
    assert found == {"time": "", "saved_bytes": "more", "launches": "fewer"}


def test_rows_without_their_like_and_another_device_are_listed():
    elsewhere = HERE._replace(device={**HERE.device, "name": "another"})
    old, new = results(row(method="peft")), results(row(method="full"), environment=elsewhere)
    assert not verdicts(old, new)
    device, only_old, only_new = differences(old, new)
    assert device.startswith("another device: ")
    assert only_old.startswith("only in the old file: ")
    assert "peft" in only_old
    assert "full" in only_new


def test_the_exit_status_tells_whether_something_got_worse_and_other_files_are_refused(tmp_path):
    old, slow, other = (tmp_path / name for name in ("old.json", "slow.json", "other.json"))
    results(row(BEFORE, saved_bytes=100), path=old).save()
    results(row(TWICE, saved_bytes=100), path=slow).save()
    other.write_text("{}")
    for given, status, said in (
        ((old, old), 0, "0 changed, 2 within the noise"),
        ((old, slow), 1, "2.000"),
        ((slow, old), 0, "0.500"),
        ((other, other), 2, "must be results files"),
    ):
        done = CliRunner().invoke(main, [*map(str, given)])
        assert (done.exit_code, said in done.output) == (status, True), done.output
