"""What a layer does on a shape, on this machine and on a named GPU."""

import pytest
import torch

import fastlora
from fastlora import FusedLoRALinear, explain
from fastlora.accounting.explain import explain_problem
from fastlora.accounting.gpus import GPUS, find_gpu
from fastlora.formula.cost import Problem
from fastlora.routes.decide import reload_tables
from fastlora.routes.plan import plan_for
from fastlora_kernels import configs
from fastlora_kernels.tables import Win
from tests.several_adapters import two


def layer(**options):
    """In one dtype unless told otherwise."""
    return FusedLoRALinear(256, 512, r=16, **{"adapter_dtype": options.get("dtype"), **options})


def test_dora_is_told_beside_the_route_of_its_products():
    found = explain((5, 64), FusedLoRALinear(64, 32, dora=True), gpu="H200")
    assert found.dora
    assert "DoRA: one more launch sums the norms of W + s B A" in str(found)
    on_a_cpu = explain((5, 64), FusedLoRALinear(64, 32, dora=True))
    assert "DoRA: torch sums the norms of W + s B A" in str(on_a_cpu)
    assert found.as_dict()["dora"] is True
    assert "DoRA" not in str(explain((5, 64), FusedLoRALinear(64, 32), gpu="H200"))


def test_on_a_named_gpu_it_tells_tiles_tasks_and_floor():
    found = explain((4, 64, 256), layer(dtype=torch.bfloat16), gpu="H200")
    assert found.path.name == "triton"
    forward, backward = found.passes
    assert forward.plan == plan_for("forward", "sm_90", found.problem)
    # Of p one program a tile: four steps of 64 along K are too few to cut.
    assert forward.plan.shape_class == "square"
    assert forward.plan.tasks == {"p": 2, "y": 2 * 4}
    assert backward.plan.tasks == {"q": 2 * 2, "dx": 2 * 2 * 2, "dB": 8, "dA": 4}
    assert backward.plan.split_k == {"q": 2, "dx": 2, "dB": 1, "dA": 1}
    assert "4 of q (2 a tile)" in str(found)
    assert forward.floor_us == pytest.approx(1e6 * forward.cost.moved / 4.8e12)
    assert "H200" in str(found)


def test_rows_that_tma_cannot_address_are_loaded_by_pointers_in_smaller_tiles():
    dtypes = (torch.bfloat16, torch.bfloat16)
    # By the plain kernels, whatever was measured.
    with fastlora.set_backend("triton"):
        whole, ragged = (
            explain_problem(Problem(8192, K, 4096, 16, *dtypes), gpu="H200") for K in (4096, 4095)
        )
    assert [one.plan.tma for one in whole.passes] == [True, True]
    assert [one.plan.shape_class for one in whole.passes] == ["wide", "wide"]
    assert [one.plan.tma for one in ragged.passes] == [False, False]
    assert [one.plan.shape_class for one in ragged.passes] == ["square", "square"]
    assert "pointers" in str(ragged)


@pytest.mark.parametrize(("K", "names"), [(4096, ["persistent"] * 2), (4095, ["triton"] * 2)])
def test_where_persistent_kernels_are_the_default_a_named_gpu_takes_them(K, names):
    found = explain_problem(Problem(8192, K, 4096, 16, torch.bfloat16, torch.bfloat16), gpu="H200")
    assert [one["path"]["name"] for one in found.as_dict()["passes"]] == names
    assert ("measured to be the fastest for so many tiles" in str(found)) == ("persistent" in names)


def test_on_a_cpu_it_tells_the_torch_path_and_no_tiles():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = explain((8, 256), layer())
    assert found.path.name == "torch"
    assert all(one.plan is None and one.floor_us is None for one in found.passes)


def test_it_follows_the_backend_that_is_set():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with fastlora.set_backend("triton"):
        found = explain((8, 256), layer())
    assert found.path.name == "interpreter"
    assert found.passes[0].plan.tasks == {"p": 1, "y": 8}


@pytest.fixture
def library_forward(monkeypatch):
    """H200's table, in which the vendor's product won the forward in bf16 at rank 16."""
    table = configs.table_of("sm_90")
    half = {
        name: entry._replace(library=(Win("forward", "bfloat16", 16),))
        for name, entry in table.entries["half"].items()
    }
    table = table._replace(entries={**table.entries, "half": half})
    reload_tables()
    monkeypatch.setattr(configs, "load_table", lambda _: table)
    yield
    reload_tables()


@pytest.mark.usefixtures("library_forward")
def test_where_the_vendors_product_won_a_pass_has_no_launch_of_ours():
    found = explain((8, 256), layer(dtype=torch.bfloat16), gpu="H200")
    assert [one["launches"] for one in found.as_dict()["passes"]] == [None, 1]
    assert [one["path"]["name"] for one in found.as_dict()["passes"]] == ["vendor", "triton"]
    assert "vendor's matrix product was measured to be faster for 'few' shapes" in str(found)


@pytest.mark.usefixtures("library_forward")
@pytest.mark.parametrize(
    "options",
    [{"dtype": torch.float16}, {"r": 8}, {"dropout": 0.1}, {"adapter_dtype": torch.float32}],
    ids=str,
)
def test_a_measurement_counts_for_its_own_dtype_and_rank_and_without_dropout(options):
    made = FusedLoRALinear(256, 512, **{"r": 16, "dtype": torch.bfloat16, **options})
    assert explain((8, 256), made, gpu="H200").passes[0].path.name == "triton"


@pytest.mark.usefixtures("library_forward")
def test_dropout_counts_in_training_alone_and_the_kernels_named_run_whatever_won():
    made = layer(dtype=torch.bfloat16, dropout=0.1)
    assert explain((8, 256), made.eval(), gpu="H200").passes[0].path.name == "vendor"
    with fastlora.set_backend("triton"):
        assert explain((8, 256), made, gpu="H200").passes[0].path.name == "triton"


def test_a_named_gpu_takes_torch_where_the_setting_or_the_dtype_says_so():
    with fastlora.set_backend("torch"):
        assert explain((8, 256), layer(), gpu="H200").path.name == "torch"
    found = explain((8, 256), layer(dtype=torch.float64), gpu="H200")
    assert found.path.name == "torch"
    assert found.passes[1].plan is None


def test_a_weight_that_tma_cannot_address_counts_as_in_the_passes():
    made = layer(dtype=torch.bfloat16)
    whole = explain((8, 256), made, gpu="H200")
    made.weight = torch.nn.Parameter(torch.empty(512, 257, dtype=torch.bfloat16)[:, 1:], requires_grad=False)
    assert whole.passes[0].plan.tma
    assert not explain((8, 256), made, gpu="H200").passes[0].plan.tma


def test_exact_fp32_products_have_a_higher_floor_than_tf32(monkeypatch):
    problem = Problem(8192, 4096, 4096, 16, torch.float32, torch.float32)
    exact = explain_problem(problem, gpu="A100").passes[0].floor_us
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert explain_problem(problem, gpu="A100").passes[0].floor_us == pytest.approx(exact / 8)


@pytest.mark.parametrize(
    ("x_shape", "other", "gpu", "error", "message"),
    [
        ((8, 255), None, None, ValueError, r"x_shape must be \[..., K=256\]; got \(8, 255\)"),
        ((), None, None, ValueError, "x_shape must be"),
        ((0, 256), None, None, ValueError, r"x_shape\[0\] must be an int >= 1; got 0"),
        ((8, 256), None, "H300", ValueError, "gpu must be one of A100, .*; got 'H300'"),
        ((8, 256), torch.nn.Linear(256, 512), None, TypeError, "layer must be a LoRA layer; got Linear"),
    ],
)
def test_what_does_not_fit_is_named(x_shape, other, gpu, error, message):
    with pytest.raises(error, match=message):
        explain(x_shape, other or layer(), gpu=gpu)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA Thing 1", None),
    ],
)
def test_a_device_is_found_by_its_name(name, key):
    assert find_gpu(name) == key


def test_every_named_gpu_has_an_entry_of_the_tile_table():
    # On ROCm the kernels run only where they are asked for.
    with fastlora.set_backend("triton"):
        for gpu in GPUS:
            assert explain((300, 256), layer(), gpu=gpu).passes[1].plan is not None


def test_what_is_told_is_the_callers_own():
    layer = FusedLoRALinear(64, 48, r=4)
    told = explain((5, 64), layer, gpu="H200").as_dict()
    told["passes"][0]["tasks"].clear()
    assert explain((5, 64), layer, gpu="H200").as_dict()["passes"][0]["tasks"]


def test_a_layer_without_part_in_the_adapter_in_use_is_refused():
    model = two(second={"target_modules": ["0"]})
    fastlora.set_adapter(model, "fr")
    without = next(each for _, each in fastlora.lora_layers(model) if each.active is None)
    with pytest.raises(ValueError, match="must have a part in the adapter in use"):
        explain((8, without.in_features), without)
