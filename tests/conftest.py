from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As many threads everywhere, so that runs can be compared bit for bit."""
    torch.set_num_threads(1)
