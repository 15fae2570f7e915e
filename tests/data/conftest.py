"""A prepared folder made by hand, and the mirror of public data where there is one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_set import prepare_in_small_batches, tiny_source


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A prepared folder of several shards."""
    folder = tmp_path / "tiny"
    prepare_in_small_batches(tiny_source(), folder)
    return folder


@pytest.fixture
def mirrored() -> Callable[[str], Path]:
    """The path of a file of DATA_MIRROR; the test is skipped where it is absent (CI has it)."""

    def find(name: str) -> Path:
        path = Path(os.environ.get("DATA_MIRROR", "DATA_MIRROR is not set"), name)
        if not path.exists():
            pytest.skip(f"needs {name} in the folder DATA_MIRROR")
        return path.resolve()

    return find
