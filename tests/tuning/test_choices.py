"""Files of choices: found, checked, used once, and never a reason for a run to fail."""

import itertools
import json

import pytest
import torch

from fastlora import FusedLoRALinear, explain
from fastlora.formula.cost import Problem
from fastlora.parallel.same_choices import check_same_choices
from fastlora.routes import choices, decide
from fastlora.routes.choices import current_versions, key_of, loaded, read_file
from fastlora.routes.plan import plan_for
from fastlora.tuning.choices_file import add_choices, write_choices
from fastlora_kernels.choice_content import Choice, Choices, ContentError, as_content, bucket, read_choices
from fastlora_kernels.tables import Tile

TILE = Tile(16, 64, 64, 3, 4, 2)
GPU = "NVIDIA Test 80GB"
PROBLEM = Problem(40, 96, 64, 4, torch.float16, torch.float16)
NF4 = "bnb-4bit"
VENDOR = Choice("vendor", None, 12.5, 1.25, "tile 16x64x64, 4 warps, 2 stages, 14.0 us")


def file_of(problem=PROBLEM, choice=None, *, dropout=False, **metadata):
    entries = {
        key_of(direction, problem, dropout): choice or Choice("kernels", TILE, 10.0, 1.1, "none")
        for direction in ("forward", "backward")
    }
    return Choices({"gpu": GPU, "when": "2026-01-02", **current_versions(), **metadata}, entries)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTLORA_TUNE", raising=False)
    monkeypatch.setenv("FASTLORA_TUNE_FILE", str(tmp_path / "choices.json"))
    decide.reload_tables()
    yield
    decide.reload_tables()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "choices.json"


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if this machine had one GPU of sm_90, whose file is looked for."""
    monkeypatch.setattr(choices, "_gpu_of", lambda architecture: GPU)
    monkeypatch.setattr(decide, "route_on", lambda *_, **__: decide.Route("triton", "it is a GPU"))
    monkeypatch.setattr("fastlora.routes.architecture.architecture_of", lambda device: "sm_90")


def test_a_file_is_read_as_it_was_written(path):
    held = file_of()
    write_choices(held, path)
    assert read_file(path) == held
    assert loaded("interpreter").choices == held
    assert [child.name for child in path.parent.iterdir()] == ["choices.json"]


def test_the_kernels_take_the_chosen_tile_at_rows_of_its_bucket_alone(path):
    write_choices(file_of(), path)
    default = plan_for("forward", "interpreter", PROBLEM, measured=False).tile
    assert default != TILE
    for M, expected in ((23, TILE), (40, TILE), (45, TILE), (46, default), (22, default)):
        assert plan_for("forward", "interpreter", PROBLEM._replace(M=M)).tile == expected, M
    for other in ({"r": 5}, {"K": 97}, {"adapter_dtype": torch.float32}):
        assert plan_for("backward", "interpreter", PROBLEM._replace(**other)).tile != TILE, other
    assert plan_for("forward", "interpreter", PROBLEM, dropout=0.5).tile != TILE
    assert plan_for("forward", "interpreter", PROBLEM, aligned=False).tile != TILE


def test_another_gpu_is_explained_without_what_was_measured_here(path, on_a_gpu):
    write_choices(file_of(), path)
    layer = FusedLoRALinear(
        PROBLEM.K, PROBLEM.N, r=PROBLEM.r, dtype=torch.float16, adapter_dtype=torch.float16
    )
    assert plan_for("forward", "sm_90", PROBLEM).tile == TILE
    for one in explain((PROBLEM.M, PROBLEM.K), layer, gpu="H200").passes:
        assert one.plan.tile != TILE


def test_buckets_cover_every_number_of_rows():
    assert [bucket(M) for M in (1, 2, 3, 5, 6, 11, 12, 8191, 8192, 11585, 11586)] == [
        1, 2, 4, 4, 8, 8, 16, 8192, 8192, 8192, 16384,
    ]  # fmt: skip
    assert all(bucket(bucket(M)) == bucket(M) for M in range(1, 5000))


def test_a_vendor_route_is_taken_in_auto_alone_and_says_why(path, on_a_gpu):
    write_choices(file_of(choice=VENDOR), path)
    device = torch.device("cuda", 0)
    found = decide.decide_for(PROBLEM, device, setting="auto")
    assert (found.forward.name, found.backward.name) == ("vendor", "vendor")
    assert "1.25 times as fast as the default" in found.forward.why
    assert decide.decide_for(PROBLEM, device, setting="triton").forward.name == "triton"
    # Its gradients were all measured together.
    some = decide.EVERYTHING._replace(dx=False)
    assert decide.decide_for(PROBLEM, device, some, setting="auto").backward.name == "triton"
    # Another GPU than this machine's was not measured.
    other = decide.decide_for(PROBLEM, device, setting="auto", gpu="H200", architecture="sm_90")
    assert other.forward.name == "triton"


def test_the_file_is_read_once(path, monkeypatch):
    write_choices(file_of(), path)
    reads = []
    monkeypatch.setattr(choices, "read_file", lambda given: reads.append(given) or read_file(given))
    for M in range(30, 45):
        plan_for("forward", "interpreter", PROBLEM._replace(M=M))
    assert len(reads) == 1
    with monkeypatch.context() as patch:
        patch.setattr(choices, "loaded", lambda _: pytest.fail("looked up on the hot path"))
        assert plan_for("forward", "interpreter", PROBLEM).tile == TILE


@pytest.mark.parametrize(
    "changed", [{"kernels": "0123"}, {"triton": "2.0"}, {"gpu": "NVIDIA Other"}], ids=str
)
def test_what_is_stale_is_ignored_with_one_warning_that_names_the_command(path, on_a_gpu, changed):
    write_choices(file_of(**changed), path)
    with pytest.warns(UserWarning, match="fastlora tune") as told:
        tiles = [plan_for("forward", "sm_90", PROBLEM._replace(M=M)).tile for M in (40, 41, 42)]
    assert TILE not in tiles
    assert len(told) == 1
    assert str(path) in str(told[0].message)


HOSTILE = {
    "no JSON": "{",
    "half-written": json.dumps(as_content(file_of()))[:200],
    "a list": "[]",
    "nested": "[" * 100_000,
    "another schema": json.dumps({**as_content(file_of()), "schema": 2}),
    "not UTF-8": b"\xff\xfe\x00",
    "huge": b" " * (9 * 2**20),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_damaged_or_hostile_file_is_ignored_with_a_warning(path, kind):
    content = HOSTILE[kind]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(UserWarning, match="is not used"):
        assert plan_for("forward", "interpreter", PROBLEM).tile != TILE


def test_a_file_that_names_code_which_is_gone_is_told_ignored_and_replaced(path):
    content = as_content(file_of(kernels="those of before"))
    content["entries"][0] |= {"code": "flattened", "tile": None}
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="is not used: .*got 'flattened' .run `fastlora tune` again") as told:
        tiles = [plan_for(way, "interpreter", PROBLEM).tile for way in ("forward", "backward")]
    assert TILE not in tiles
    assert len(told) == 1
    add_choices(file_of(), path)
    assert read_file(path) == file_of()


def test_a_directory_or_a_missing_file_that_was_asked_for_is_told(path):
    with pytest.warns(UserWarning, match="is not used"):
        assert loaded("interpreter").choices is None
    path.mkdir()
    choices.forget_choices()
    with pytest.warns(UserWarning, match="no regular file"):
        assert loaded("interpreter").choices is None


def entry(**changes):
    content = as_content(file_of())
    content["entries"][0] |= changes
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 48}, "rows must be a power of two"),
        ({"K": True}, "K must be"),
        ({"K": 0}, "K must be"),
        ({"direction": "sideways"}, "direction must be one of forward, backward"),
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"dropout": 1}, "dropout must be one of"),
        ({"base": "bnb-9bit"}, "base must be one of plain, bnb-4bit"),
        ({"base": ["plain"]}, "base must be one of"),
        ({"base": None}, "base must be one of"),
        ({"code": "packed", "rows": 16, "direction": "forward"}, "over a packed base"),
        ({"code": "packed", "base": NF4, "tile": None, "direction": "forward"}, "at up to 16 rows"),
        ({"code": "packed", "base": NF4, "rows": 16, "direction": "backward"}, "only forward"),
        ({"code": "packed", "base": NF4, "rows": 16, "direction": "forward"}, "tile must be null"),
        ({"code": "vendor"}, "tile must be null"),
        ({"tile": None}, "must be an object"),
        ({"tile": {**TILE._asdict(), "num_warps": 3}}, "num_warps must be one of"),
        ({"us": float("nan")}, "us must be a number"),
        ({"gain": "1"}, "gain must be a number"),
        ({"runner_up": "x" * 1000}, "runner_up must be a text"),
        ({"surprise": 1}, "unknown 'surprise'"),
    ],
    ids=str,
)
def test_every_value_of_a_file_is_checked(changes, message):
    with pytest.raises(ContentError, match=message):
        read_choices(entry(**changes))


def test_a_file_may_be_switched_off_and_shipped_ones_come_last(path, tmp_path, monkeypatch, on_a_gpu):
    write_choices(file_of(), path)
    monkeypatch.setenv("FASTLORA_TUNE", "0")
    choices.forget_choices()
    assert loaded("sm_90").choices is None
    monkeypatch.delenv("FASTLORA_TUNE")
    monkeypatch.delenv("FASTLORA_TUNE_FILE")
    monkeypatch.setattr(choices, "own_file", lambda gpu: tmp_path / "own" / choices.file_name(gpu))
    monkeypatch.setattr(choices, "SHIPPED", tmp_path / "shipped")
    shipped, own = file_of(when="shipped"), file_of(when="own")
    for folder, held in (("shipped", shipped), ("own", own)):
        write_choices(held, tmp_path / folder / "nvidia-test-80gb.json")
        assert loaded("sm_90").choices == held
    # A stale one of a stranger is no fault of the user's: no warning.
    (tmp_path / "own" / "nvidia-test-80gb.json").unlink()
    write_choices(file_of(triton="1.0"), tmp_path / "shipped" / "nvidia-test-80gb.json")
    assert loaded("sm_90").choices is None


def test_what_ships_is_valid():
    for file in choices.SHIPPED.glob("*.json"):
        read = read_file(file)
        assert file.name == choices.file_name(read.metadata["gpu"])


@pytest.mark.parametrize("second", ["same", "another"])
def test_ranks_with_other_choices_are_named(path, monkeypatch, second):
    write_choices(file_of(), path)
    other = choices.Loaded(file_of(choice=VENDOR), None, "measured on 2026-02-02")

    def gather(told, mine, group=None):
        told[0] = told[2] = mine
        told[1] = mine if second == "same" else (other.digest, "/b.json, measured on 2026-02-02")

    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 3)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    if second == "same":
        check_same_choices()
    else:
        with pytest.raises(ValueError, match=r"ranks 0, 2 \(.*choices.json.*; ranks 1 \(/b.json"):
            check_same_choices()


def test_names_of_files_are_plain():
    names = [choices.file_name(name) for name in ("NVIDIA H100 80GB HBM3", "AMD Instinct MI300X", "../a/b")]
    assert names == ["nvidia-h100-80gb-hbm3.json", "amd-instinct-mi300x.json", "a-b.json"]
    assert all(one != other for one, other in itertools.combinations(names, 2))
