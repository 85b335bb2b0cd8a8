"""Cards of trained networks, and networks with their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bnew.display import Shown, new_table
from bnew.errors import BnewError, lookup
from bnew.shares import interval_of, wilson
from bnew.text import percent

if TYPE_CHECKING:
    from torch import nn

FOLDER = Path(__file__).parent / "files"


@dataclass(frozen=True, repr=False)
class Card(Shown):
    """What is known of a trained network; prints as a table. ``benchmarks/pretrained.py`` writes it."""

    name: str
    model: str
    """The architecture, see :func:`bnew.create_model`."""
    options: Mapping[str, Any]
    """Of the architecture, such as ``num_classes``."""
    data: str
    """The data set that it was trained on."""
    test_images: int
    test_right: int
    """How many of the test images the packed network gets right, counted by ``bnew eval``."""
    recipes: tuple[Mapping[str, Any], ...]
    """Of the run, then of those that it started from or learned from, as they wrote them."""
    packed_bytes: int
    milliseconds: float
    """For one image on one thread, the median of ``bnew bench``."""
    cpu: str
    isa: str
    """The engine's instruction set."""
    sha256: str
    """Of the weights' file."""
    commit: str
    date: str
    command: str
    """That trained it."""

    @property
    def accuracy(self) -> float:
        """The share of the test images that the packed network gets right."""
        return self.test_right / self.test_images

    @property
    def weights(self) -> Path:
        """The file with the weights."""
        return FOLDER / f"{self.name}.safetensors"

    @property
    def packed(self) -> Path:
        """The packed file, in the engine's package.

        Raises:
            BnewError: the engine is not installed, or is of a version without this network.
        """
        try:
            from bnew_engine import networks
        except ImportError as error:
            raise BnewError(
                f"trained networks as packed files come with bnew-engine, which is not installed ({error})"
            ) from None
        if self.name not in networks():
            raise BnewError(f"the installed bnew-engine has no network {self.name!r}: install it again")
        return Path(networks()[self.name])

    @property
    def trained(self) -> str:
        """Method and epochs, in the order of the runs."""
        steps = [(recipe.get("method") or "floats", recipe["epochs"]) for recipe in reversed(self.recipes)]
        return ", ".join(f"{method} {epochs} epochs" for method, epochs in steps)

    def __rich__(self) -> Table:
        interval = interval_of(wilson(self.test_right, self.test_images))
        table = new_table("network", self.name)
        for what, value in (
            ("architecture", ", ".join([self.model, *(f"{k} {v}" for k, v in self.options.items())])),
            ("data", f"{self.data}, seed {self.recipes[0]['seed']}"),
            ("trained", self.trained),
            ("test accuracy", f"{percent(self.accuracy)} ({interval}) of {self.test_images:,} images"),
            ("packed", f"{self.packed_bytes:,} bytes"),
            ("one image", f"{self.milliseconds:.3g} ms, one thread, {self.cpu}, {self.isa}"),
            ("from", f"{self.command} ({self.date}, commit {self.commit[:9]})"),
        ):
            table.add_row(what, value)
        return table


def list_pretrained() -> list[str]:
    """The names of the trained networks, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@cache
def pretrained_card(name: str) -> Card:
    """The card of a trained network.

    Raises:
        BnewError: there is none of this name.
    """
    cards = {each: FOLDER / f"{each}.json" for each in list_pretrained()}
    found = json.loads(lookup("trained network", name, cards).read_text())
    return Card(**{**found, "recipes": tuple(found["recipes"])})


def create_trained(model: str, pretrained: object, options: Mapping[str, Any]) -> nn.Module:
    """``bnew.create_model(model, pretrained=…, **options)``: with the weights of a trained network.

    A layer of classes keeps its random weights if ``options`` give another number of classes.

    Raises:
        BnewError: there is no such trained network, or it is of another architecture or of other options.
    """
    from bnew.files import sha256_of
    from bnew.models import create_model
    from bnew.weights import put_weights, read_weights

    if not isinstance(pretrained, str):
        names = " or ".join(f"pretrained={each!r}" for each in list_pretrained())
        raise BnewError(f"{model} needs the name of trained weights, not {pretrained!r}: give {names}")
    card = pretrained_card(pretrained)
    if card.model != model:
        raise BnewError(
            f"the trained network {pretrained!r} is no {model}: create_model({card.model!r}, "
            f"pretrained={pretrained!r})"
        )
    if sha256_of(card.weights) != card.sha256:
        raise BnewError(f"{card.weights} is damaged or was replaced: install bnew again")
    given = {**card.options, **options}
    network = create_model(model, **given)
    put_weights(
        network, read_weights(card.weights), f"the trained network {pretrained!r}", given["num_classes"]
    )
    return network
