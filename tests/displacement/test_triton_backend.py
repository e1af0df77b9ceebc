"""The backend ``triton`` where there is no GPU: refused by name, nothing put in its place."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from quantvane.displacement.metrics import token_metrics
from quantvane.errors import CapabilityError

LOGITS = np.zeros((2, 5), np.float32)
TOKENS = np.zeros(2, np.int64)


def test_without_cuda_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CapabilityError, match="'triton'") as caught:
        token_metrics(LOGITS, LOGITS, TOKENS, "triton")
    assert "numba" in caught.value.remedy


def test_without_torch_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("torch", "triton"):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(CapabilityError, match="'triton'") as caught:
        token_metrics(LOGITS, LOGITS, TOKENS, "triton")
    assert "pip install torch triton" in caught.value.remedy
