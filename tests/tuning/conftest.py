"""No test of tuning reads or leaves choices of another one, or of this machine."""

import pytest

from fastlora.routes.decide import reload_tables


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    for name in ("FASTLORA_TUNE", "FASTLORA_TUNE_FILE"):
        monkeypatch.delenv(name, raising=False)
    reload_tables()
    yield
    reload_tables()
