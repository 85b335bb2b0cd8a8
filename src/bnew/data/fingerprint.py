"""Which images a data set has, as plain data: stored with a run, and compared with what is there later.

A fingerprint names the classes and every split, each with a few values:

* ``images``: how many there are;
* ``contents``, of images in memory: a hash of all pixels and labels, in their order;
* ``names``, ``sizes``, ``sample`` and ``times``, of images that stay in files: hashes of the paths below the
  data folder, of the sizes in bytes, of the contents of some files, and of the times of the last change in
  whole seconds. Times alone make no other data set: they change where the same files are unpacked anew.

It depends on neither the place of the folder nor the process, and values of JSON are all it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

Fingerprint = Mapping[str, Mapping[str, Any]]
"""``classes`` or a split → what is known of it."""


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """A hash of byte strings, of 32 hexadecimal digits; where one ends and the next begins counts."""
    whole = blake2b(digest_size=16)
    for part in parts:
        whole.update(memoryview(part).nbytes.to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()


def class_names(classes: Iterable[str]) -> dict[str, Any]:
    """The entry ``classes`` of a fingerprint."""
    return {"names": digest(name.encode(errors="surrogateescape") for name in classes)}


def differences(stored: Fingerprint, found: Fingerprint) -> list[str]:
    """How the data that a run was trained with differ from those that are there now, in short phrases.

    Such as "train had 61 images and has 60", "val: other names". Empty if they are the same,
    whatever their times.
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
    """The parts whose files have other times; what else may differ, :func:`differences` says."""
    return [
        part for part in stored if part in found and stored[part].get("times") != found[part].get("times")
    ]


def short(fingerprint: Fingerprint) -> str:
    """Eight hexadecimal digits that tell data sets apart. Times do not count: a copy has the same."""
    timeless = {part: _timeless(values) for part, values in fingerprint.items()}
    return digest([json.dumps(timeless, sort_keys=True).encode()])[:8]


def _timeless(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "times"}
