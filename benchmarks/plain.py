"""The other side of the comparison: BNEW's phase 2 as most research code would write it.

The same network and the same update as bnew's birealnet20, in plain PyTorch: eager and NCHW, a sign whose
gradient comes from masks and ``detach``, shifts and scales as modules, PIL images transformed one by one in
a DataLoader, Adam as it comes, and a Python loop over the weights after each step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bnew.data.in_memory import MemoryDataset, Split


class Sign(nn.Module):
    """sign with the gradient of Bi-Real Net's piecewise polynomial."""

    def forward(self, x: Tensor) -> Tensor:
        left = ((x >= -1) & (x < 0)).type_as(x)
        right = ((x >= 0) & (x < 1)).type_as(x)
        outside = (x >= 1).type_as(x) - (x < -1).type_as(x)
        smooth = left * (2 * x + x**2) + right * (2 * x - x**2) + outside
        hard = (x >= 0).type_as(x) * 2 - 1
        return hard.detach() + (smooth - smooth.detach())


class Shift(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.expand_as(x)


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.expand_as(x)


class Block(nn.Module):
    """Modules stand in the order of bnew's, so that parameters can be copied one after the other."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.shift = Shift(c_in)
        self.sign = Sign()
        self.scale = Scale(c_out)
        self.bn = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(2, stride), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
            )
        self.shift_before = Shift(c_out)
        self.prelu = nn.PReLU(c_out)
        self.shift_after = Shift(c_out)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = self.conv(self.sign(self.shift(x)))
        out = self.bn(self.scale(out))
        out = out + residual
        out = self.shift_after(self.prelu(self.shift_before(out)))
        return out  # type: ignore[no-any-return]


class BiRealNet20(nn.Module):
    """(N, 3, H, W) → logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks = []
        width = 16
        for c_out in (16, 32, 64):
            for _ in range(6):
                blocks.append(Block(width, c_out, stride=1 if c_out == width else 2))
                width = c_out
        self.layers = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.pool(self.bn(self.conv(x))))
        x = self.avgpool(x).flatten(1)
        return self.fc(x)  # type: ignore[no-any-return]

    def binary_weights(self) -> list[nn.Parameter]:
        return [m.conv.weight for m in self.layers if isinstance(m, Block)]  # type: ignore[misc]

    @torch.no_grad()
    def copy_from(self, model: nn.Module) -> None:
        """Take the parameters of bnew's birealnet20."""
        for own, other in zip(self.parameters(), model.parameters(), strict=True):
            own.copy_(other.view_as(own))


class Training:
    """Phase 2 of BNEW: Adam's rate falls linearly, the push ``reg`` grows linearly over ``total_steps``."""

    def __init__(self, model: BiRealNet20, lr: float, reg: float, total_steps: int) -> None:
        self.model, self.reg, self.total_steps = model, reg, total_steps
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda t: 1 - t / total_steps)
        self.steps = 0

    def step(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step; loss and logits."""
        output = self.model(images)
        loss = F.cross_entropy(output, target)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()
        self.steps += 1
        reg = self.reg * self.steps / self.total_steps
        for w in self.model.binary_weights():
            w.data = torch.clamp(w.data * (1 + 2 * reg), -1, 1)
        return loss, output

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """One pass over ``batches``; mean loss and accuracy."""
        total_loss, hits, count = 0.0, 0, 0
        for images, target in batches:
            loss, output = self.step(images, target)
            total_loss += loss.item() * len(target)
            hits += int((output.argmax(1) == target).sum().item())
            count += len(target)
        return total_loss / count, hits / count


class Images(Dataset[tuple[Tensor, int]]):
    """Images from memory, as torchvision's CIFAR10 gives them: PIL images through transforms, one by one."""

    def __init__(self, split: Split, dataset: MemoryDataset) -> None:
        self.pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(split.images.shape[-1], padding=dataset.augmentation.padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(dataset.mean, dataset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.targets[index]


def make_loader(split: Split, dataset: MemoryDataset, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Two worker processes, kept from epoch to epoch, so that a short epoch does not pay for their start."""
    return DataLoader(
        Images(split, dataset), batch_size, shuffle=True, num_workers=2, persistent_workers=True
    )
