"""predict: classes and probabilities of arrays and of image files; and what a model says of itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bnew_engine import EngineError, Model, isas, load
from tiny import Array, Network

MEAN, STD = [0.5, 0.25, 0.5], [0.5, 0.25, 0.25]
CLASSES = ["cat", "dog", "été"]


def classifier(
    shape: tuple[int, int, int] = (3, 4, 6), *ends: str, outputs: int = 3, **image: Any
) -> Network:
    """The mean of every channel through one real layer, then nodes or steps called as ``ends``."""
    random = np.random.default_rng(0)
    network = Network(shape, **image)
    pooled = network.node("adaptive_avg_pool", "input", size=[1, 1])
    steps: list[dict[str, Any]] = [{end: {}} for end in ends if end != "softmax"]
    weight = random.standard_normal((outputs, shape[0], 1, 1)).astype(np.float32)
    last = network.conv(pooled, weight, then=steps)
    if "softmax" in ends:
        network.node("softmax", last)
    return network


@pytest.fixture
def model(tmp_path: Path) -> Model:
    network = classifier(mean=MEAN, std=STD)
    network.graph["classes"] = CLASSES
    return load(network.write(tmp_path / "m.bnew"))


@pytest.fixture
def bytes_of_images() -> Array:
    return np.random.default_rng(1).integers(0, 256, (70, 4, 6, 3), np.uint8)


def softmax(x: Array) -> Array:
    e = np.exp(x.astype(np.float64))
    return np.asarray(e / e.sum(1, keepdims=True))


def test_classes_and_probabilities(model: Model, bytes_of_images: Array) -> None:
    expected = softmax(model(bytes_of_images))
    classes, probabilities = model.predict(bytes_of_images, top=2)
    order = np.argsort(-expected, 1)[:, :2]
    assert classes.tolist() == [[CLASSES[i] for i in row] for row in order]
    np.testing.assert_allclose(probabilities, np.take_along_axis(expected, order, 1), rtol=1e-12)
    assert model.predict(bytes_of_images).classes.shape == (70, 3)  # no more than there are
    assert model.predict(bytes_of_images[:0]).probabilities.shape == (0, 3)
    assert model.output_kind == "softmax"


def test_one_image_and_floats(model: Model, bytes_of_images: Array) -> None:
    expected = model.predict(bytes_of_images[:1])
    floats = ((bytes_of_images[:1] / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    for one in (bytes_of_images[0], list(bytes_of_images[:1]), floats, floats[0]):
        found = model.predict(one)
        assert found.classes.tolist() == expected.classes.tolist()
        np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-5)


def test_vectors(tmp_path: Path) -> None:
    network = classifier((5, 1, 1))
    model = load(network.write(tmp_path / "m.bnew"))
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    assert model.predict(x).classes.shape == (4, 3)
    assert model.predict(x[0]).classes.tolist() == model.predict(x).classes[:1].tolist()


@pytest.mark.parametrize("count", [1, 5, 9])  # also as many as the line has channels, or places
def test_lines(count: int, tmp_path: Path) -> None:
    model = load(classifier((5, 9, 1)).write(tmp_path / "m.bnew"))
    x = np.random.default_rng(0).standard_normal((count, 5, 9)).astype(np.float32)
    expected = model.predict(x[..., None])
    for images, wanted in ((x, expected.probabilities), (x[0], expected.probabilities[:1])):
        np.testing.assert_array_equal(model.predict(images).probabilities, wanted)
    np.testing.assert_array_equal(model.predict(x[0, ..., None]).probabilities, expected.probabilities[:1])


@pytest.mark.parametrize(
    ("ends", "outputs", "kind"),
    [
        ((), 3, "softmax"),
        ((), 1, "logistic"),
        (("softmax",), 3, "softmax"),
        (("sigmoid",), 3, "sigmoid"),
        (("hard_sigmoid",), 1, "sigmoid"),
    ],
)
def test_kinds_of_outputs(ends: tuple[str, ...], outputs: int, kind: str, tmp_path: Path) -> None:
    model = load(classifier((3, 4, 6), *ends, outputs=outputs).write(tmp_path / "m.bnew"))
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)
    raw = model(x)
    expected = raw if ends else softmax(raw) if outputs > 1 else 1 / (1 + np.exp(-raw.astype(np.float64)))
    assert model.output_kind == kind
    classes, probabilities = model.predict(x)
    for row, names, shares in zip(expected, classes, probabilities, strict=True):
        found = dict(zip(names, shares, strict=True))
        np.testing.assert_allclose([found[f"class {i}"] for i in range(outputs)], row, rtol=1e-6)


def test_outputs_that_are_no_classes(tmp_path: Path) -> None:
    network = Network((3, 4, 6))
    network.conv("input", np.ones((2, 3, 1, 1), np.float32))
    with pytest.raises(EngineError, match="the output is an image of 2×4×6 numbers, and no classes"):
        load(network.write(tmp_path / "m.bnew")).predict(np.zeros((1, 3, 4, 6), np.float32))
    network = classifier((3, 4, 6), "softmax")
    network.node("identity", network.graph["output"], then=[{"scale": network.tensor([2.0])}])
    model = load(network.write(tmp_path / "m.bnew"))
    with pytest.raises(EngineError, match="probabilities that were scaled, shifted, added"):
        model.predict(np.zeros((1, 3, 4, 6), np.float32))
    network = classifier((3, 4, 6), "softmax")
    some: dict[str, Any] = {"shape": [2, 1, 1], "sizes": [2], "strides": [1], "offset": 1}
    network.node("rearrange", network.graph["output"], **some)
    with pytest.raises(EngineError, match="probabilities that were scaled, shifted, added"):
        load(network.bytes()).predict(np.zeros((1, 3, 4, 6), np.float32))


@pytest.mark.parametrize(
    ("images", "top", "message"),
    [
        (np.zeros((1, 3, 4, 6), np.float32), 0, "top is 0, but must be a whole number from 1"),
        (np.zeros((1, 4, 4, 3), np.uint8), 1, r"images have shape \(1, 4, 4, 3\)"),
        ([], 1, "images have shape"),
        (["no.png"], 1, "cannot read the image 'no.png': No such file or directory"),
        (["no.png", 3], 1, "cannot read the image 'no.png'|int among names of files"),
        ([3, "no.png"], 1, "int among names of files"),
    ],
)
def test_wrong_input(model: Model, images: Any, top: int, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        model.predict(images, top)


# -------------------------------------------------------------------------------------------- image files


def test_image_files(model: Model, bytes_of_images: Array, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    paths = []
    for i, pixels in enumerate(bytes_of_images):
        image.fromarray(pixels).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    expected = model.predict(bytes_of_images)
    for found in (model.predict(paths), model.predict([str(path) for path in paths])):
        assert found.classes.tolist() == expected.classes.tolist()
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert model.predict(paths[3]).classes.tolist() == expected.classes[3:4].tolist()
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(EngineError, match=r"cannot read the image '.*no\.png': cannot identify"):
        model.predict([paths[0], tmp_path / "no.png"])
    with pytest.raises(EngineError, match=r"cannot read the image '.*': Is a directory"):
        model.predict(tmp_path)


def test_scaled_and_cut_as_resize_says(tmp_path: Path) -> None:
    """Scaled to cover 8 × 8, of which the centre is taken: 4 × 4 of other values than the border's."""
    image = pytest.importorskip("PIL.Image")
    network = classifier((1, 4, 4), mean=[0.0], std=[1.0], resize=[8, 8])
    model = load(network.write(tmp_path / "m.bnew"))
    assert model.resize == (8, 8)
    pixels = np.zeros((8, 12), np.uint8)
    pixels[2:6, 4:8] = 200
    image.fromarray(pixels).save(tmp_path / "x.png")
    expected = model.predict(np.full((1, 4, 4, 1), 200, np.uint8))
    np.testing.assert_array_equal(model.predict(tmp_path / "x.png").probabilities, expected.probabilities)


def test_images_that_would_be_guessed(model: Model, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(EngineError, match=r"pixels of mode I;16.*: save it with 8 bits a channel"):
        model.predict(tmp_path / "x.png")
    four = load(classifier((4, 4, 6), mean=[0.5] * 4, std=[0.5] * 4).write(tmp_path / "m.bnew"))
    with pytest.raises(EngineError, match="takes 4 channels, but image files have 1 or 3"):
        four.predict(tmp_path / "x.png")
    without = load(classifier().write(tmp_path / "m.bnew"))
    image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(EngineError, match="does not say how bytes become input"):
        without.predict(tmp_path / "x.png")


def test_without_pillow(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EngineError, match=r"image files are read with Pillow .*: pip install pillow"):
        model.predict("x.png")


# --------------------------------------------------------------------------------- what a model says


def test_how_images_are_prepared(model: Model, tmp_path: Path) -> None:
    assert (model.classes, model.mean, model.std) == (tuple(CLASSES), tuple(MEAN), tuple(STD))
    assert model.resize == (4, 6)
    plain = load(classifier().write(tmp_path / "m.bnew"))
    assert (plain.classes, plain.mean, plain.std) == ((), None, None)


def test_repr_is_a_line(model: Model) -> None:
    assert repr(model) == f"<bnew_engine.Model: 3×4×6 → 3 classes, 2 nodes, {isas()[0]}, 1 thread>"


def test_repr_of_what_makes_images(tmp_path: Path) -> None:
    network = Network((3, 4, 5))
    network.conv("input", np.ones((2, 3, 1, 1), np.float32))
    model = load(network.write(tmp_path / "m.bnew"), 2, "scalar")
    assert repr(model) == "<bnew_engine.Model: 3×4×5 → 2×4×5, 1 node, scalar, 2 threads>"
