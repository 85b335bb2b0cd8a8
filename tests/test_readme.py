"""What the README says to do works as it is written there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

import bnew

README = (Path(__file__).parent.parent / "README.md").read_text()
TRAINING, INFERENCE = (block.partition("```")[0] for block in README.split("```python\n")[1:])


class Loader:
    """Shuffled batches of scikit-learn's digits, in colour and 16 x 16."""

    def __init__(self, count: int, batch_size: int = 32) -> None:
        images, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(images[:count]).float().view(-1, 1, 8, 8) / 8 - 1
        self.x = F.interpolate(x, scale_factor=2).expand(-1, 3, -1, -1).contiguous()
        self.y, self.batch_size = torch.from_numpy(labels[:count]), batch_size
        self.epochs = 0

    def __len__(self) -> int:
        return len(self.y) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epochs += 1
        order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(self.epochs))
        for rows in order[: len(self) * self.batch_size].view(-1, self.batch_size):
            yield self.x[rows], self.y[rows]


def small_resnet(num_classes: int) -> ResNet:
    """The first two stages of ResNet-18, with one block each."""
    model = ResNet(BasicBlock, [1, 1, 1, 1])
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(128, num_classes)
    return model


def test_your_own_network(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "resnet18", small_resnet)
    torch.manual_seed(0)
    loader = Loader(512)
    accuracies: list[float] = []
    magnitudes: list[set[float]] = []

    @torch.no_grad()
    def evaluate(model: nn.Module) -> None:
        assert not model.training
        accuracies.append(float((model(loader.x).argmax(1) == loader.y).float().mean()))
        magnitudes.append({m for w in bnew.binary_parameters(model) for m in torch.unique(w.abs()).tolist()})

    names: dict[str, Any] = {"loader": loader, "evaluate": evaluate}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # freeze() has nothing to warn of
        exec(TRAINING, names)
    model, method = names["model"], names["method"]
    assert loader.epochs == len(accuracies) == 18
    assert [m == {1.0} for m in magnitudes] == [False] * 6 + [True] * 12
    assert isinstance(method, bnew.methods.BNEW)
    assert method.frozen
    assert method.step == method.total_steps == 12 * 16
    evaluate(model)
    assert magnitudes[-1] == {1.0}
    assert accuracies[-1] == pytest.approx(accuracies[-2], abs=0.02)  # freezing costs nothing
    assert accuracies[-1] > 0.8
    out = capsys.readouterr().out
    assert "layer1.0.conv1" in out
    assert "BNEW(strength=9" in out

    # Started again it has nothing left to do.
    ended = {name: value.clone() for name, value in model.state_dict().items()}
    exec(TRAINING, names)
    assert loader.epochs == 18
    for name, value in names["model"].state_dict().items():
        assert torch.equal(value, ended[name])

    pytest.importorskip("bnew_engine")
    images = torch.randn(1, 3, 224, 224)
    names["images"] = images.numpy()
    exec(INFERENCE, names)
    with torch.no_grad():
        expected = model.eval()(images)
    # A sign that rounding turns over shows.
    assert torch.corrcoef(torch.stack([expected[0], torch.from_numpy(names["logits"][0])]))[0, 1] > 0.99


def test_a_stopped_loop_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, where it is stopped in the middle of either phase."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "resnet18", small_resnet)
    code = TRAINING.replace("print(bnew.summary", "(lambda *_: None)(").replace(
        "bnew.pack(", "(lambda *_: None)("
    )

    def run(stop_at: int | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        loader = Loader(64)

        def evaluate(_: nn.Module) -> None:
            if loader.epochs == stop_at:
                raise KeyboardInterrupt

        names: dict[str, Any] = {"loader": loader, "evaluate": evaluate}
        for stopped in [True] * (stop_at is not None) + [False]:
            if stopped:
                with pytest.raises(KeyboardInterrupt):
                    exec(code, names)
                assert stop_at is not None
                loader.epochs, stop_at = stop_at - 1, None  # what was not saved is done again
                continue
            exec(code, names)
        for path in tmp_path.glob("*.pt"):
            path.unlink()
        return names["model"].state_dict()  # type: ignore[no-any-return]

    whole = run(None)
    for stop_at in (3, 11):
        for name, value in run(stop_at).items():
            assert torch.equal(value, whole[name]), (stop_at, name)
