"""What is trained on a folder in a given time: pure functions on plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

# Sides in pixels that images are brought to. Smaller images keep their size, and none is enlarged.
SIZES = (128, 96, 64)
SMALL = 48
SMALLEST = 8
# Networks, the best first, with the epochs and the steps below which the next one is better in the same time.
FOR_PHOTOS = {"reactnet18": (8, 150), "birealnet20": (20, 2000), "birealnet8": (0, 0)}
# A larger image than the smallest of SIZES pays if there is time for so many times as much.
LARGER = 4
# Where there is no time for so many epochs at the smallest of SIZES, images of this side are better.
FEW_EPOCHS, TINY = 4, 32
FOR_SMALL = {"birealnet20": (20, 3000), "birealnet8": (0, 0)}
# Below so many steps of phase 2, straight-through estimation is the better method: BNEW's push must be slow.
STEPS_OF_BNEW = 4000
MOST_EPOCHS = 300  # of all stages together; more time would not be used well
BATCH, SMALLEST_BATCH, STEPS_PER_EPOCH = 128, 16, 16
# How the epochs are divided; with a float network to start from, it gets the first share.
SHARES = {"phase1": 1 / 3, "phase2": 2 / 3}
SHARES_WITH_FLOAT = {"float": 0.2, "phase1": 0.3, "phase2": 0.5}
TEACHING = 4 / 3  # what a step costs with a teacher of the same size, beside one without
EVALUATING = 1 / 3  # what an image costs in validation, beside one in training
# The share of the time that choosing may take by timing steps, and what all of it may be exceeded by.
TIMING, OVER = 0.1, 0.1
# Learning rates of Adam for batches of BATCH images.
RATES = {"reactnet18": 2e-3, "reactnet_a": 2e-3}
RATE, RATE_OF_OTHERS, RATE_OF_FLOATS = 1e-2, 3e-3, 1e-3


@dataclass(frozen=True)
class Candidate:
    """A network at an image size."""

    model: str
    image_size: int
    least: tuple[int, int] = (0, 0)
    """Epochs and steps that it needs to be the best choice."""


@dataclass(frozen=True)
class Budget:
    """What a time allows a candidate."""

    step: float
    """Seconds for a training step."""
    steps_per_epoch: int
    val_images: int
    batch: int
    saving: float = 0.0
    """Seconds for a checkpoint, once an epoch."""

    @property
    def epoch(self) -> float:
        """Seconds for an epoch, with its validation and its checkpoint."""
        validation = EVALUATING * self.val_images / self.batch
        return self.step * (self.steps_per_epoch + validation) + self.saving

    def scaled(self, size: int, other: int) -> Budget:
        """The same at another image size: a step takes as much longer as an image has more pixels."""
        return replace(self, step=self.step * (other / size) ** 2)

    def of(self, counts: Mapping[str, int], batch: int) -> Budget:
        """The same for other numbers of images, and another batch."""
        steps = -(-counts["train"] // batch)
        return Budget(self.step * batch / self.batch, steps, counts["val"], batch, self.saving)

    def epochs(self, seconds: float) -> int:
        """How many epochs fit into ``seconds``, at most :data:`MOST_EPOCHS`."""
        return min(int(seconds / self.epoch), MOST_EPOCHS)

    def is_enough(self, seconds: float, least: tuple[int, int]) -> bool:
        """Whether ``least`` epochs and steps fit into ``seconds``."""
        return enough(seconds / self.epoch, self.steps_per_epoch, least)


def enough(epochs: float, steps_per_epoch: int, least: tuple[int, int]) -> bool:
    """Whether these are ``least`` epochs and steps."""
    return epochs >= least[0] and epochs * steps_per_epoch >= least[1]


def image_sizes(side: int) -> tuple[int, ...]:
    """The sizes to choose from for images whose shorter side is typically ``side``, the largest first."""
    if side <= SMALL:
        return (max(side, SMALLEST),)
    return tuple(size for size in SIZES if size <= side) or (SMALL,)


def candidates(
    side: int, model: str | None = None, image_size: int | None = None, in_time: bool = False
) -> list[Candidate]:
    """What to choose from, the best first, as if there were time enough; ``model`` and ``image_size`` fix it.

    Small images need a network that keeps its resolution, large ones one that is wide. If a time is given
    (``in_time``), the last one is that with the smallest images, for where there is hardly any.
    """
    sizes = (image_size,) if image_size is not None else image_sizes(side)
    known = FOR_SMALL if max(sizes) < SIZES[-1] else FOR_PHOTOS
    first, *others = (model,) if model is not None else known
    epochs, steps = known.get(first, FOR_PHOTOS["reactnet18"])
    larger = [Candidate(first, size, (LARGER * epochs, LARGER * steps)) for size in sizes[:-1]]
    smallest = [Candidate(name, sizes[-1], known.get(name, (epochs, steps))) for name in (first, *others)]
    if in_time and sizes[-1] == SIZES[-1] and image_size is None:
        last = smallest.pop()
        least = (max(last.least[0], FEW_EPOCHS), last.least[1])
        smallest += [replace(last, least=least), Candidate(last.model, TINY)]
    return larger + smallest


def expected_counts(parts: Mapping[str, int]) -> dict[str, int]:
    """The images to train and to validate on, about, by what there are in the parts train, val and test."""
    train, val = parts["train"], parts.get("val", 0)
    if not val and "test" not in parts:
        train -= train // 5
    if not val or "test" not in parts:
        val = train // 10
        train -= val
    return {"train": train, "val": val}


def batch_size(images: int) -> int:
    """Images per step: a power of two with at least :data:`STEPS_PER_EPOCH` steps an epoch, within limits.

    It is lowered where a batch of one image would be left, of which batch norm knows no variance.
    """
    batch = BATCH
    while batch > SMALLEST_BATCH and images / batch < STEPS_PER_EPOCH:
        batch //= 2
    while images % batch == 1 and batch > 2:
        batch -= 1
    return batch


def learning_rate(model: str, batch: int, of_floats: bool = False) -> float:
    """Adam's rate, which follows the square root of the batch."""
    other = RATE_OF_OTHERS if ":" in model else RATE
    rate = RATE_OF_FLOATS if of_floats else RATES.get(model, other)
    return float(f"{rate * (batch / BATCH) ** 0.5:.2g}")


def method_for(steps: int) -> str:
    """The method for ``steps`` steps of phase 2."""
    return "bnew" if steps >= STEPS_OF_BNEW else "ste"


def data_set(grey: bool, image_size: int) -> str:
    """The data set that reads the images, by which they are augmented.

    Grey ones may be letters or drawings, which are others when they are mirrored. Of large ones a part shows
    the same thing; small ones have no parts to lose.
    """
    if grey:
        return "grey_folder"
    return "photos" if image_size >= SIZES[-1] else "folder"


def affordable(budgets: Mapping[Candidate, Budget], seconds: float) -> Candidate:
    """The first candidate for which the time is enough; if there is none, the one with the cheapest epoch."""
    for candidate, budget in budgets.items():
        if budget.is_enough(seconds, candidate.least):
            return candidate
    return min(budgets, key=lambda each: budgets[each].epoch)


def divided(epochs: int, with_float: bool) -> dict[str, int]:
    """Stage → its epochs, at least one each."""
    shares = SHARES_WITH_FLOAT if with_float else SHARES
    return {stage: max(1, round(share * epochs)) for stage, share in shares.items()}


def costs(with_float: bool) -> dict[str, float]:
    """Stage → what an epoch of it costs; after a float network, which then teaches, a step costs more."""
    stages = SHARES_WITH_FLOAT if with_float else SHARES
    return {stage: TEACHING if with_float and stage != "float" else 1.0 for stage in stages}


def least_seconds(budget: Budget, with_float: bool) -> float:
    """Seconds for the shortest training: an epoch of each stage."""
    return sum(costs(with_float).values()) * budget.epoch


def epochs_of_stages(seconds: float, budget: Budget, with_float: bool) -> dict[str, int]:
    """:func:`divided` for a time; where it is too short, an epoch of each stage."""
    shares = SHARES_WITH_FLOAT if with_float else SHARES
    epochs = budget.epochs(seconds / sum(shares[stage] * cost for stage, cost in costs(with_float).items()))
    return divided(epochs, with_float) if epochs >= len(shares) else dict.fromkeys(shares, 1)


def refitted(epochs: Mapping[str, int], factor: float) -> dict[str, int]:
    """``epochs`` times ``factor``, at least one of each stage, and at most :data:`MOST_EPOCHS` of all."""
    factor = min(factor, MOST_EPOCHS / sum(epochs.values()))
    return {stage: max(1, int(each * factor)) for stage, each in epochs.items()}


def deadlines(seconds: float, with_float: bool) -> dict[str, float]:
    """Stage → the share of ``seconds`` for training by which it ends, whatever happens.

    What it should have, and a quarter of what the later ones have.
    """
    found, used = {}, 0.0
    for stage, share in (SHARES_WITH_FLOAT if with_float else SHARES).items():
        used += share
        found[stage] = seconds * (used + (1 - used) / 4)
    return found
