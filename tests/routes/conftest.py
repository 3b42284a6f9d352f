"""As if there were a GPU: which code calls would take there."""

import pytest

from fastlora.routes import choices, decide
from fastlora.routes.route import Route

GPU = "NVIDIA Test 80GB"


@pytest.fixture
def on_sm_90(monkeypatch, tmp_path):
    """As if this machine had one GPU of sm_90, whose file is at the path that this is."""
    path = tmp_path / "choices.json"
    monkeypatch.delenv("FASTLORA_TUNE", raising=False)
    monkeypatch.setenv("FASTLORA_TUNE_FILE", str(path))
    monkeypatch.setattr(choices, "_gpu_of", lambda architecture: GPU)
    monkeypatch.setattr(decide, "route_on", lambda *_, **__: Route("triton", "it is a GPU"))
    monkeypatch.setattr("fastlora.routes.architecture.architecture_of", lambda device: "sm_90")
    monkeypatch.setattr("fastlora.routes.architecture.multiprocessors", lambda device: 132)
    decide.reload_tables()
    yield path
    decide.reload_tables()
