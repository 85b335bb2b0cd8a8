from __future__ import annotations

import pytest
import torch

import plain
from bnew.data.in_memory import Augmentation, MemoryDataset, Split
from bnew.methods import METHODS
from bnew.models import create_model
from costs import count_memory
from training import check_same_step

PARAMETERS, BINARY = 275_786, 267_264
TENSORS = len(list(create_model("birealnet20").parameters()))


def test_the_plain_implementation_computes_the_same() -> None:
    check_same_step()


def test_a_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain.Shift, "forward", lambda self, x: x)
    with pytest.raises(AssertionError):
        check_same_step()


@pytest.mark.parametrize("name", METHODS)
def test_memory_is_counted(name: str) -> None:
    """Beside itself and its gradient, a binary weight has float32 numbers of Adam's and of the method's."""
    row = METHODS[name]
    adam, own = 0 if row.moves_weights else 2, len(row.state)
    memory = count_memory(name, "birealnet20")
    assert memory.weights == memory.gradients == 4 * PARAMETERS
    assert memory.binarizer == 4 * own * BINARY
    # Adam counts its steps in a number of its own for each tensor that it updates.
    tensors = TENSORS if adam else TENSORS - 18
    assert memory.optimizer == 4 * (adam * BINARY + 2 * (PARAMETERS - BINARY) + tensors)
    assert memory.total == sum((memory.weights, memory.gradients, memory.optimizer, memory.binarizer))


def test_loader_gives_normalised_images() -> None:
    images = torch.full((4, 3, 32, 32), 255, dtype=torch.uint8)
    split = Split(images, torch.arange(4))
    data = MemoryDataset(
        name="white",
        classes=("a",) * 4,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        train=split,
        val=split,
        test=split,
        augmentation=Augmentation(0, True),
    )
    image, label = plain.Images(split, data)[2]
    assert label == 2
    assert image.equal(torch.ones(3, 32, 32))
