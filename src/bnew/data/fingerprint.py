"""Fingerprints: which images a data set has, as plain data that is stored with a run and compared later.

A fingerprint has an entry for the classes and one for every split:

* ``images``: their number;
* ``contents``, for images in memory: a hash of all pixels and labels in order;
* ``names``, ``sizes``, ``sample`` and ``times``, for images in files: hashes of the paths below the data
  folder, of the sizes in bytes, of the contents of some files, and of the modification times in seconds.
  Different times alone do not make another data set: unpacking the same files again changes them.

A fingerprint depends neither on the folder's path nor on the process, and holds only JSON values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

Fingerprint = Mapping[str, Mapping[str, Any]]
"""``classes`` or a split → its entry."""


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """A hash of a sequence of byte strings, 32 hexadecimal digits; ("ab", "c") and ("a", "bc") differ."""
    whole = blake2b(digest_size=16)
    for part in parts:
        whole.update(memoryview(part).nbytes.to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()


def class_names(classes: Iterable[str]) -> dict[str, Any]:
    """The entry ``classes`` of a fingerprint."""
    return {"names": digest(name.encode(errors="surrogateescape") for name in classes)}


def differences(stored: Fingerprint, found: Fingerprint) -> list[str]:
    """How the data that a run was trained on (``stored``) differ from those found now, in short phrases.

    For example "train had 61 images and has 60", "val: other names". Empty if only times differ.
    """
    phrases = []
    for part in dict.fromkeys((*stored, *found)):
        if part not in found or part not in stored:
            phrases.append(f"{part} is {'missing' if part in stored else 'new'}")
            continue
        before, now = (_timeless(each[part]) for each in (stored, found))
        if before.get("images") != now.get("images"):
            phrases.append(f"{part} had {before.get('images')} images and has {now.get('images')}")
        else:
            other = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
            if other:
                phrases.append(f"{part}: other {' and '.join(other)}")
    return phrases


def retouched(stored: Fingerprint, found: Fingerprint) -> list[str]:
    """The parts whose files have other times; for all other differences see :func:`differences`."""
    return [
        part for part in stored if part in found and stored[part].get("times") != found[part].get("times")
    ]


def short(fingerprint: Fingerprint) -> str:
    """Eight hexadecimal digits that identify a data set. Times do not count, so a copy has the same."""
    timeless = {part: _timeless(values) for part, values in fingerprint.items()}
    return digest([json.dumps(timeless, sort_keys=True).encode()])[:8]


def _timeless(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "times"}
