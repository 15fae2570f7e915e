import pytest
import torch

from optim import compiled


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """compile=True runs what is traced, simplified and split without the compiler, which takes up to a minute a case;
    that it computes the same is tested in test_compiled.py."""
    monkeypatch.setattr(compiled, "MADE", {})
    monkeypatch.setattr(torch._inductor, "compile", lambda module, *_, **__: module)
