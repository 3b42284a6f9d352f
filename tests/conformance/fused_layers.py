"""A pytest plugin under which PEFT makes fastlora's layers, and which notes how their forwards went."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fastlora.integrations import peft_layer
from fastlora.integrations.peft import register
from fastlora.integrations.peft_package import LoraConfig

_counts: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forward-counts", type=Path, help="where to write {way: forwards} as JSON")


def pytest_configure() -> None:
    made, counted = LoraConfig.__post_init__, peft_layer.count

    def make(config: LoraConfig) -> None:
        made(config)
        register(config)

    def count(layer: Any, way: str) -> None:
        counted(layer, way)
        _counts[way] += 1

    LoraConfig.__post_init__ = make
    peft_layer.count = count


def pytest_unconfigure(config: pytest.Config) -> None:
    config.getoption("--forward-counts").write_text(json.dumps(_counts.most_common()), encoding="utf-8")
