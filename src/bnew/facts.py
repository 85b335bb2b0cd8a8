"""What is known of bnew's architectures without building them: sizes, work and published accuracies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFacts:
    """What is known of an architecture without building it; a test computes the numbers by `bnew.summary`."""

    image_size: int
    classes: int
    packed_bytes: int
    binary_macs: int
    real_macs: int
    published: str = ""
    """The best published accuracy, of what, and where."""


FACTS = {
    "birealnet8": ModelFacts(32, 10, 30_888, 2_949_120, 508_544),
    "birealnet20": ModelFacts(32, 10, 67_752, 10_027_008, 508_544, "55.1 % CIFAR-100 validation, BNEW"),
    "bnext_tiny": ModelFacts(
        224, 1000, 13_932_016, 4_816_896_000, 13_344_512, "72.4 % ImageNet, arXiv:2211.12933"
    ),
    "quicknet": ModelFacts(224, 1000, 4_368_032, 1_849_688_064, 29_651_712, "63.3 % ImageNet, Larq Zoo"),
    "quicknet_large": ModelFacts(
        224, 1000, 5_660_320, 3_699_376_128, 29_651_712, "66.9 % ImageNet, Larq Zoo"
    ),
    "quicknet_small": ModelFacts(
        224, 1000, 4_197_152, 1_156_055_040, 15_941_120, "59.4 % ImageNet, Larq Zoo"
    ),
    "reactnet18": ModelFacts(
        224, 1000, 4_264_352, 1_676_279_808, 137_793_536, "65.5 % ImageNet, arXiv:2003.03488"
    ),
    "reactnet_a": ModelFacts(
        224, 1000, 7_893_280, 4_816_896_000, 11_862_016, "70.5 % ImageNet, arXiv:2106.11309"
    ),
    "resnet18": ModelFacts(224, 1000, 46_758_048, 0, 1_814_073_344, "69.8 % ImageNet, torchvision"),
    "resnet34": ModelFacts(224, 1000, 87_190_688, 0, 3_663_761_408, "73.3 % ImageNet, torchvision"),
    "wideresnet22": ModelFacts(32, 10, 1_089_128, 0, 40_813_184),
}
