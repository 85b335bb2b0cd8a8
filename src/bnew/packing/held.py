"""Finds the numbers at which a value is held: it takes them exactly, and not by a coincidence of rounding.

``torch.sign`` of exactly 0 is 0, but a bit is +1 or −1. A value that is 0 by a coincidence of rounding may
get either sign. A value that is 0 by construction may not, for example behind a ReLU or as a sum of an even
number of signs. The rules of the vocabulary tell the two apart: a rule says what an operator does to the
numbers at which its inputs are held. An operator without a rule may return any number, including 0.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

import numpy as np

from bnew.packing import rules
from bnew.packing.pieces import Held, Rule, anything
from bnew.packing.values import Value, ancestors
from bnew.packing.vocabulary import ROWS

HELD: dict[str, Rule] = {
    **{name: row.held for name, row in ROWS.items() if row.held is not None},
    # Values that are no operators of the file.
    "input": rules.image,
    "bits": rules.same,  # only a binary convolution reads it
    "choice": rules.choice,
}


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
            if any(of.unknown for of in inputs) and np.any(found.at_any):
                found = replace(found, unknown=True)
            known[each] = found
    return known[value]
