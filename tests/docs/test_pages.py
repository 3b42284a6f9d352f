"""Every Python block of README and docs runs, and the site has every page and every public name."""

import importlib
import json
import os
import re
import subprocess
import sys

import pytest

from tests.docs.pages import BEFORE, PAGES, ROOT, blocks, name_of, script

WITH_BLOCKS = [page for page in PAGES if blocks(page)]
REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_every_block_is_python(page):
    compile(script(page), name_of(page), "exec")


def test_what_comes_before_a_block_is_of_a_block_that_is_there():
    found = {name_of(page): len(blocks(page)) for page in PAGES}
    assert all(number < found[page] for page, given in BEFORE.items() for number in given)


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_every_block_runs(page, tmp_path):
    for library in ("peft", "transformers", "bitsandbytes", "matplotlib"):
        pytest.importorskip(library)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", script(page)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("index", "fastlora"),
        ("peft", "fastlora.integrations.peft"),
        ("analysis", "fastlora.analysis"),
        ("parallel", "fastlora.parallel"),
    ],
)
def test_the_reference_lists_exactly_what_is_public(page, module):
    """A name that comes or goes changes this page too: so it is meant."""
    if module.endswith("peft"):
        pytest.importorskip("peft")
    text = (REFERENCE / f"{page}.md").read_text(encoding="utf-8")
    listed = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(set(importlib.import_module(module).__all__) - {"__version__"})


def test_the_site_has_every_page():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in site


def test_version_changelog_and_citation_agree():
    from fastlora import __version__

    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_workflows_are_valid():
    """By the schema that check-jsonschema brings with it."""
    pytest.importorskip("check_jsonschema")
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *workflows], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(workflows) == 3


def test_the_notebooks_ran_to_their_ends():
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), path.name
        assert any(cell["outputs"] for cell in cells)


@pytest.mark.exhaustive
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()
    for page in tmp_path.rglob("*.html"):
        paragraphs = re.findall(r"<p>(.*?)</p>", page.read_text(encoding="utf-8"), re.DOTALL)
        assert not [text for text in paragraphs if "\n- " in text], f"{page}: a list runs on in a paragraph"


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_runs(path, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
