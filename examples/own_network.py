"""A network of your own, from floats to bits: trained, made binary, trained again, packed, verified, run.

python examples/own_network.py
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import bnew_engine
import torch
import tyro
from handwriting import SHAPE, SmallResNet, accuracy, handwriting, train

import bnew


@dataclass(frozen=True)
class Options:
    """Make a small network binary."""

    epochs: tuple[int, int, int] = (5, 5, 10)
    """As floats, of phase 1 and of phase 2."""
    out: Path = Path("own.bnew")
    """The packed file."""


def main(options: Options) -> None:
    """Train, convert, train, pack, verify and run."""
    torch.manual_seed(0)
    batches, held_out = handwriting()
    floats = SmallResNet()
    of_floats, phase1, phase2 = options.epochs
    train(floats, batches, of_floats)
    print(f"as floats: {100 * accuracy(floats, held_out):.1f} %")

    # The plan says in advance which layers become binary, and why. Given images, `binarize` also sets scales
    # and batch norms, so that training starts from a network that works.
    print(bnew.plan(floats))
    model = bnew.binarize(copy.deepcopy(floats), calibrate=batches)

    # Phase 1 learns with binary activations and real weights, phase 2 with binary weights too.
    train(model, batches, phase1, bnew.methods.Clip)
    print(f"binary activations: {100 * accuracy(model, held_out):.1f} %")
    method = train(model, batches, phase2, bnew.methods.BNEW)
    assert method is not None
    method.freeze()
    print(f"binary weights too: {100 * accuracy(model, held_out):.1f} %")
    print(bnew.summary(model, SHAPE))

    # Bits, and whether they are the same network.
    bnew.pack(model, torch.zeros(1, *SHAPE), options.out, classes=[str(digit) for digit in range(10)])
    check = bnew.verify(options.out, model, held_out)
    print(check)
    packed = bnew_engine.load(options.out)
    share = accuracy(lambda x: torch.from_numpy(packed(x.numpy())), held_out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, {100 * share:.1f} %; verified: {check.ok}")


if __name__ == "__main__":
    main(tyro.cli(Options))
