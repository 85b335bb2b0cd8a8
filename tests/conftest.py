from __future__ import annotations

import signal

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As many threads everywhere, so that runs can be compared bit for bit."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """A shell that starts a job in the background has it ignore SIGINT, and the tests with it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
