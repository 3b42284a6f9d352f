"""Who imports whom, and what runs without the packages that are optional."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each line imports from lines above it only; a room is a folder or a file of fastlora/. Inside a room imports
# make no circle.
ROOMS = (
    ("arguments", "folder_lock", "operator_library", "tables", "version", "warning"),
    ("config_values", "seeding"),
    ("config",),
    ("formula",),
    ("formats",),
    ("measuring", "lowrank", "reference_layers", "routes"),
    ("autograd", "segments", "tuning"),
    ("layer",),
    ("experts",),
    ("model",),
    ("accounting", "adapter_files", "analysis", "info", "integrations", "parallel"),
    ("tune_model",),
    ("recipes",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
# What reads the tile tables, and the choices that a tuning run made.
TABLE_READERS = (
    "routes.plan",
    "routes.programs",
    "routes.group_plan",
    "routes.plan_runs",
    "routes.choices",
    "routes.persistent",
    "routes.architecture",
)
# What launches kernels.
KERNEL_ROUTES = (
    "routes.launch",
    "routes.relaunch",
    "routes.fused",
    "routes.fused_dora",
    "routes.fused_packed",
    "routes.group_fused",
    "routes.fused_runs",
    "routes.hopper",
)
KERNEL_PACKAGES = ("triton", "fastlora_kernels")

MODULES = sorted((ROOT / "fastlora").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels" / "fastlora_kernels").rglob("*.py"))


def dotted(path):
    """A file's name below fastlora, such as routes.decide."""
    return ".".join(path.relative_to(ROOT / "fastlora").with_suffix("").parts)


def room(path):
    """The folder or file of fastlora/ that a file belongs to."""
    return dotted(path).split(".")[0]


def imports(path, *, inside_functions=True):
    """Dotted names that a file imports, `from fastlora import x` as fastlora.x."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if inside_functions else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def foreign(path, **options):
    """Top-level packages that a file imports, but for the standard library's."""
    return {name.split(".")[0] for name in imports(path, **options)} - sys.stdlib_module_names


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_imports_upward(path):
    if room(path) == "__init__":
        return
    assert room(path) in LEVEL, f"give {room(path)} its place in ROOMS"
    for name in imports(path):
        package, *inner = name.split(".")
        if package == "fastlora" and inner[0] != room(path):
            assert LEVEL[inner[0]] < LEVEL[room(path)], f"{dotted(path)} must not import {inner[0]}"


def test_imports_make_no_circle():
    names = {dotted(path): path for path in MODULES}
    graph = {}
    for name, path in names.items():
        wanted = [one.removeprefix("fastlora.") for one in imports(path) if one.startswith("fastlora.")]
        parts = {one if one in names else one.rpartition(".")[0] for one in wanted}
        graph[name] = parts & names.keys() - {name}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_importing_a_module_needs_torch_alone(path):
    allowed = {"torch", "fastlora"}
    if dotted(path) in KERNEL_ROUTES:
        allowed |= {"triton", "fastlora_kernels"}
    if dotted(path) in TABLE_READERS or room(path) == "tuning":
        allowed |= {"fastlora_kernels"}
    if path.stem == "peft_package":
        allowed |= {"peft"}
    if room(path) not in ("cli", "recipes"):
        assert foreign(path, inside_functions=False) <= allowed


def test_the_oracle_knows_torch_alone():
    for name in ("oracle", "masks", "operands"):
        assert foreign(ROOT / "fastlora" / "formula" / f"{name}.py") == {"torch"}


def test_only_the_fused_route_knows_of_triton_and_only_its_plans_besides_of_the_tile_table():
    knows = {name: {dotted(path) for path in MODULES if name in foreign(path)} for name in KERNEL_PACKAGES}
    assert knows["triton"] <= {"routes.launch", "routes.relaunch", "routes.fused_runs", "routes.hopper"}
    # A format launches the kernel that unpacks it.
    rooms = ("tuning.", "formats.")
    known = {name for name in knows["fastlora_kernels"] if not name.startswith(rooms)}
    assert known <= {*KERNEL_ROUTES, *TABLE_READERS}


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_device_code_imports_triton_alone(path):
    assert foreign(path) <= {"triton", "fastlora_kernels"}


def run_without(blocked, code):
    """Run code in a fresh interpreter where importing the blocked packages fails; its output."""
    block = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    # torch itself warns where numpy is missing.
    command = [sys.executable, "-W", "error", "-W", "ignore:Failed to initialize NumPy", "-c", block + code]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "", "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


USE = """
import copy, io, tempfile, torch
from torch import nn
import fastlora
from fastlora import LoRAConfig

net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
base = copy.deepcopy(net)
fastlora.apply_lora(net, LoRAConfig(r=2, dropout=0.5, target_modules=["0"]))
fastlora.apply_lora(net, LoRAConfig(r=2, dropout=0.5))
optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad])
x = torch.randn(4, 6)
for _ in range(3):
    optimizer.zero_grad()
    net(x).square().sum().backward()
    optimizer.step()
with fastlora.lora_disabled(net):
    assert torch.equal(net(x), base(x))
net.eval()
assert not torch.equal(net(x), base(x))
fastlora.merge_lora(net)
fastlora.unmerge_lora(net)
assert "LoRA" in str(fastlora.parameter_report(net))
"""

SAVE = """
path = tempfile.mkdtemp() + "/adapter.safetensors"
fastlora.save_adapter(net, path)
assert torch.equal(fastlora.load_adapter(base.eval(), path)(x), net(x))
"""

EXTRAS = ["safetensors", "huggingface_hub", "peft", "transformers", "click", "rich", "matplotlib", "numpy"]


def test_everything_works_without_triton():
    path = "print(fastlora.routes.route.route_on(x.device, x.dtype).why)"
    assert run_without(["triton"], USE + SAVE + path) == "triton is not installed"


def test_without_any_extra_all_works_adapter_files_too_and_pefts_models_name_theirs(tmp_path):
    keep = f"fastlora.save_pretrained(net, {str(tmp_path)!r}); print('saved')"
    code = "try:\n    import fastlora.integrations.peft\nexcept ImportError as error:\n    print(error)"
    saved, without_peft = run_without([*EXTRAS, "triton"], f"{USE}{SAVE}{keep}\n{code}").splitlines()
    assert saved == "saved"
    assert without_peft.endswith('pip install "fastlora-triton[peft]"')
    found = pytest.importorskip("safetensors.torch").load_file(tmp_path / "adapter_model.safetensors")
    assert set(found) == {f"base_model.model.{i}.lora_{x}.weight" for i in (0, 2) for x in "AB"}


# What a plain import loads: what `apply_lora` needs.
LOADED_AT_ONCE = {
    *("arguments", "autograd", "config", "config_values", "experts", "formats", "formula", "layer", "model"),
    *("operator_library", "routes", "segments", "tables", "version", "warning"),
}


def test_importing_the_package_loads_what_apply_lora_needs_and_beside_torch_nothing_else():
    new = "import torch; old = set(sys.modules); {}; print(*set(sys.modules) - old)"
    found = set(run_without([], new.format("import fastlora")).split())
    # Without the package's own imports.
    blank = "fastlora = sys.modules['fastlora'] = type(sys)('fastlora')"
    blank += f"; fastlora.__path__ = [{str(ROOT / 'fastlora')!r}]"
    needed = run_without([], new.format(f"{blank}; import fastlora.model.apply")).split()
    assert found == {*needed, "fastlora.version"}
    assert {name.split(".")[1] for name in found - {"fastlora"}} == LOADED_AT_ONCE


def test_what_is_loaded_later_is_listed_once_for_type_checkers_and_once_for_python():
    tree = ast.parse((ROOT / "fastlora" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (
        node for node in tree.body if isinstance(node, ast.If) and not isinstance(node.test, ast.UnaryOp)
    )
    for_checkers = {alias.name: node.module for node in block.body for alias in node.names}
    import fastlora

    assert {name: f"fastlora.{module}" for name, module in fastlora._LATER.items()} == for_checkers


def test_every_public_name_exists_and_is_documented():
    import fastlora

    for name in fastlora.__all__:
        assert getattr(fastlora, name).__doc__, name
