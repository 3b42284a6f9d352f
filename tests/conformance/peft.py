"""PEFT's own tests with fastlora's layers in its models: `python -m tests.conformance.peft`.

Fetches PEFT's source distribution, which carries its tests, runs those of LoRA twice, with PEFT's layers and
with fastlora's, and compares test by test. Models of the hub are made on the spot (tiny_models.py). It takes
ten minutes. Beside the `test` extra it needs what PEFT's tests import: pip install diffusers datasets scipy
parameterized.

PEFT's tests are strong on states (adding, switching, merging, saving adapters) and weak on numbers: a doubled
gradient of B fails none of them. tests/integrations holds the gradients to the oracle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSION = "0.21.2"
SHA256 = "b803ccfb3f3f316004d850284306687833a2235ea278fb56abc856203456142e"
PACKAGE = "peft_tests"
# All tests of LoRA in these files, by pytest's -k, which reads names of files, classes, tests and parameters.
FILES = (
    *("test_custom_models.py", "test_lora_variants.py", "test_initialization.py", "test_mixed.py"),
    "test_decoder_models.py",
)
_LORA = "lora, TestMultiRankAdapter, TestHotSwapping, TestScaling, TestLowCpuMemUsage"
_OTHER_METHODS = "AdaLora, DeLoRA, GLora, GraLora, RandLora, TinyLora, UniLora, VBLora"
SELECTION = f"({_LORA}) and not ({_OTHER_METHODS})".replace(",", " or")


def main(arguments: list[str] | None = None) -> int:
    """0 if every test that passes with PEFT's layers passes with fastlora's, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fastlora" / f"peft-{VERSION}"
    parser.add_argument("--cache", type=Path, default=default, help="where the tests are kept (%(default)s)")
    cache = parser.parse_args(arguments).cache.resolve()
    unpack_tests(fetch(cache), cache / PACKAGE)
    counts_file = cache / "forward-counts.json"
    stock = run(cache, "stock")
    fused = run(cache, "fused", "-p", "tests.conformance.fused_layers", f"--forward-counts={counts_file}")
    counts = dict(json.loads(counts_file.read_text(encoding="utf-8")))
    faults = compare(stock, fused, counts)
    for name, outcomes in (("PEFT's layers", stock), ("fastlora's layers", fused)):
        print(name + ":", ", ".join(f"{count} {what}" for what, count in tally(outcomes)))
    print("forwards:", ", ".join(f"{count} {way}" for way, count in counts.items()))
    print(*faults, "different" if faults else "the same", sep="\n")
    return 1 if faults else 0


def fetch(cache: Path) -> Path:
    """PEFT's source distribution, in the cache; pip checks its hash."""
    archive = cache / f"peft-{VERSION}.tar.gz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        wanted = cache / "requirements.txt"
        wanted.write_text(f"peft=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        options = ["--no-deps", "--no-binary", ":all:", "--dest", str(cache), "--requirement", str(wanted)]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options], check=True)
    return archive


def unpack_tests(archive: Path, package: Path) -> None:
    """The modules of the archive's tests/ as a package; its own __init__.py is not in the archive."""
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            parts = Path(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                content = files.extractfile(member)
                assert content is not None
                (package / parts[2]).write_bytes(content.read())


def run(cache: Path, name: str, *options: str) -> dict[str, str]:
    """{test: outcome} of PEFT's tests in an interpreter of their own."""
    results = cache / f"{name}.xml"
    results.unlink(missing_ok=True)
    files = (str(cache / PACKAGE / file) for file in FILES)
    command = [sys.executable, "-m", "pytest", *files, "-k", SELECTION, *options]
    command += ["-q", "--no-header", "--tb=short", "-c", os.devnull, "--rootdir", str(cache)]
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark", f"--junitxml={results}"]
    command += ["-p", "tests.conformance.tiny_models"]
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache / "hub")}
    print(f"running PEFT's tests ({name}) ...", flush=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    (cache / f"{name}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    if not results.exists():
        raise SystemExit(
            f"pytest wrote no results; the end of its output:\n{done.stdout[-3000:]}{done.stderr}"
        )
    return read_results(results)


def read_results(path: Path) -> dict[str, str]:
    """{test: "passed", "skipped", "failure" or "error"} of a JUnit file."""
    outcomes = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("skipped", "failure", "error")]
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
    return outcomes


def tally(outcomes: Mapping[str, str]) -> list[tuple[str, int]]:
    """(outcome, how many), the most common first."""
    return Counter(outcomes.values()).most_common()


def compare(stock: Mapping[str, str], fused: Mapping[str, str], counts: Mapping[str, int]) -> list[str]:
    """What differs, a line each; nothing to compare, or no fused forward, is a fault as well."""
    faults = [
        f"{test}: {stock.get(test, 'absent')} with PEFT's layers, {fused.get(test, 'absent')} with fastlora's"
        for test in sorted({*stock, *fused})
        if stock.get(test) != fused.get(test)
    ]
    if "passed" not in stock.values():
        faults.append("no test passed with PEFT's layers")
    if not counts.get("fused"):
        faults.append("no forward was fused")
    return faults


if __name__ == "__main__":
    sys.exit(main())
