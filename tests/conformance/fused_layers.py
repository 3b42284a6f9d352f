"""A pytest plugin under which PEFT makes fastlora's layers, and which notes how their forwards went."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from fastlora.integrations.peft import FastLinear, register
from fastlora.integrations.peft_package import LoraConfig

_counts: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forward-counts", type=Path, help="where to write {way: forwards} as JSON")


def pytest_configure() -> None:
    made, counted = LoraConfig.__post_init__, FastLinear._count

    def make(config: LoraConfig) -> None:
        made(config)
        register(config)

    def count(layer: FastLinear, way: str) -> None:
        counted(layer, way)
        _counts[way] += 1

    LoraConfig.__post_init__ = make
    FastLinear._count = count


def pytest_unconfigure(config: pytest.Config) -> None:
    config.getoption("--forward-counts").write_text(json.dumps(_counts.most_common()), encoding="utf-8")
