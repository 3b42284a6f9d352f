"""The logic of `python -m tests.conformance.peft`; the command itself takes minutes and a network."""

import io
import tarfile

from tests.conformance.peft import compare, read_results, unpack_tests

PASSING = {"a::one": "passed", "a::two": "skipped"}


def test_the_same_outcomes_with_fused_forwards_are_no_fault():
    assert compare(PASSING, dict(PASSING), {"fused": 3, "adapters are merged": 2}) == []


def test_a_test_that_fails_with_our_layers_alone_is_a_fault():
    faults = compare(PASSING, {**PASSING, "a::one": "failure"}, {"fused": 3})
    assert faults == ["a::one: passed with PEFT's layers, failure with fastlora's"]


def test_a_test_that_did_not_run_is_a_fault():
    assert compare(PASSING, {"a::two": "skipped"}, {"fused": 3}) == [
        "a::one: passed with PEFT's layers, absent with fastlora's"
    ]


def test_nothing_passed_and_nothing_fused_are_faults():
    skipped = {"a::one": "skipped"}
    assert compare(skipped, skipped, {"adapters are merged": 2}) == [
        "no test passed with PEFT's layers",
        "no forward was fused",
    ]


def test_results_are_read_from_junit(tmp_path):
    file = tmp_path / "results.xml"
    file.write_text(
        '<testsuites><testsuite><testcase classname="m.C" name="x"/><testcase classname="m.C" name="y">'
        '<failure message="">trace</failure></testcase><testcase classname="m.C" name="z"><skipped/>'
        "</testcase></testsuite></testsuites>"
    )
    assert read_results(file) == {"m.C::x": "passed", "m.C::y": "failure", "m.C::z": "skipped"}


def test_only_the_modules_of_the_tests_folder_are_unpacked(tmp_path):
    archive = tmp_path / "peft.tar.gz"
    names = [
        "peft-1/tests/test_x.py",
        "peft-1/setup.py",
        "peft-1/tests/../../evil.py",
        "peft-1/tests/data.bin",
    ]
    with tarfile.open(archive, "w:gz") as files:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            files.addfile(info, io.BytesIO(b"pass"))
    package = tmp_path / "deep" / "package"
    unpack_tests(archive, package)
    assert {path.name for path in package.iterdir()} == {"__init__.py", "test_x.py"}
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "peft.tar.gz"}
