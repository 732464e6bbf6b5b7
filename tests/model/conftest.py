"""Images for the tiny models."""

import pytest
import torch


@pytest.fixture
def pixels() -> torch.Tensor:
    """Four different random images `[4, 3, 48, 48]`."""
    return torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
