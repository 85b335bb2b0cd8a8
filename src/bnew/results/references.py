"""Published accuracies that stand beside results."""

from __future__ import annotations

from dataclasses import dataclass

MISSING = "–"


@dataclass(frozen=True)
class Reference:
    """A published accuracy, in percent, as published."""

    data: str
    name: str
    model: str
    source: str
    test: str = MISSING
    val: str = MISSING
    epochs: str = MISSING


_LOGGED = "one logged run of the authors' code, almost surely CIFAR-100 without distillation"
_TOP1 = "top-1 on ImageNet's validation images"

REFERENCES = (
    Reference("cifar10", "IR-Net", "ResNet-20", "arXiv:1909.10788", test="86.5"),
    Reference("cifar10", "ReCU", "ResNet-20", "arXiv:2103.12369", test="87.5"),
    Reference("cifar10", "AdaBin", "ResNet-20", "arXiv:2208.08084", test="88.2"),
    Reference("cifar10", "real-valued", "ResNet-20", "beside the above", test="92.1"),
    Reference("cifar100", "BNEW, phase 2", "birealnet20", _LOGGED, val="53.92", epochs="200"),
    Reference("cifar100", "BNEW, phase 2", "birealnet20", _LOGGED, val="55.08", epochs="1000"),
    Reference("imagenet", "BNEW, step 1", "ReActNet-A", f"its author; {_TOP1}", test="70.1", epochs="128"),
    Reference("imagenet", "BNEW, step 1", "ReActNet-A", f"a user's run; {_TOP1}", test="69.5", epochs="128"),
    Reference("imagenet", "ReActNet", "ReActNet-A", f"arXiv:2003.03488; {_TOP1}", test="69.4"),
    Reference("imagenet", "AdamBNN", "ReActNet-A", f"arXiv:2106.11309; {_TOP1}", test="70.5"),
)
