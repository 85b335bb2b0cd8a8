"""Finds the numbers at which a value is held: it takes them exactly, and not by a coincidence of rounding.

``torch.sign`` of exactly 0 is 0, but a bit is +1 or −1. A value that is 0 by a coincidence of rounding may
get either sign. A value that is 0 by construction may not, for example behind a ReLU or as a sum of an even
number of signs. Nor may the difference of what a network computes of two images, which may be the same. The
rules of the vocabulary tell the two apart: a rule says what an operator does to the
numbers at which its inputs are held. An operator without a rule may return any number, including 0.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

import numpy as np

from bnew.packing import rules
from bnew.packing.pieces import Held, Rule, anything, pieced
from bnew.packing.values import Value, ancestors
from bnew.packing.vocabulary import ROWS

HELD: dict[str, Rule] = {
    **{name: row.held for name, row in ROWS.items() if row.held is not None},
    # Values that are no operators of the file.
    "input": rules.image,
    "bits": rules.same,  # only a binary convolution reads it
    "choice": rules.choice,
}


def _may_be_equal(value: Value) -> bool:
    """Whether a sum needs two inputs of one shape: where both are the same image, its terms may cancel."""
    shapes = [each.shape for each in ancestors(value) if each.op == "input"]
    return len(set(shapes)) < len(shapes)


def held(value: Value, known: MutableMapping[Value, Held]) -> Held:
    """The numbers at which the value is held. ``known`` keeps what has been found for later calls."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for each in ancestors(value, known=known):
            inputs = [known[needed] for needed in each.inputs if not needed.constant]
            if each.op == "add" and all(term in known for term in each.terms):
                # In (a + b) − (a − b), a has cancelled out.
                inputs = [
                    rules.scale(term, known[term], np.array([n])) for term, n in each.terms.items()
                ] or inputs
            found = HELD.get(each.op, anything)(each, *inputs)
            if each.op == "add" and _may_be_equal(each):
                found = pieced(each, [*found.pieces, (0.0, 0.0)], found.slopes)
            if any(of.unknown for of in inputs) and np.any(found.at_any):
                found = replace(found, unknown=True)
            known[each] = found
    return known[value]
