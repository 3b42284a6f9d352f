import pytest

from tests.adapter_files.stored import Store


@pytest.fixture(params=["directory", "file.safetensors"])
def store(request, tmp_path):
    return Store(tmp_path / request.param)
