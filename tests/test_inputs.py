"""Networks of several inputs: packed, run by the engine, verified; what is refused, and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Cli, resealed
from packed_reference import Reference, check_tidy
from torch import Tensor, nn

import bnew
from bnew import BinaryConv2d, BinaryLinear, BnewError, binary_parameters
from bnew.deploy.inference import bench
from bnew.deploy.onnx import export_onnx
from bnew.packing.file import PackedFile

# Where it is installed, it has to agree as well.
bnew_engine: Any = import_module("bnew_engine") if find_spec("bnew_engine") else None
needs_engine = pytest.mark.skipif(bnew_engine is None, reason="needs bnew-engine")


def trained(model: nn.Module) -> nn.Module:
    """As after training: batch norms have statistics, binary weights are at ±1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in binary_parameters(model):
            weight.copy_(torch.where(weight >= 0, 1.0, -1.0))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 4)
    return model.eval()


def encoder(channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        BinaryConv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Siamese(nn.Module):
    """Two images, by the same layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()
        self.head = nn.Linear(16, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        result: Tensor = self.head((self.encoder(left) - self.encoder(right)).abs())
        return result


class WithMetadata(nn.Module):
    """An image and a vector; the third parameter is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()
        self.numbers = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.head = nn.Sequential(nn.BatchNorm1d(24), BinaryLinear(24, 4))

    def forward(self, image: Tensor, metadata: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        x = torch.cat((self.encoder(image), self.numbers(metadata)), 1)
        x = x if mask is None else x * mask
        return {"scores": self.head(x), "size": metadata[:, 1:3]}


class TwoVectors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(7, 6), BinaryLinear(9, 6)

    def forward(self, v0: Tensor, b1: Tensor) -> Tensor:
        """The parameters are called as pack() calls values of its own."""
        result: Tensor = self.one(v0) * torch.sigmoid(self.other(b1 - 0.3))
        return result


class Many(nn.Module):
    """Inputs without names of their own, of which one is joined with another as large."""

    def forward(self, *images: Tensor) -> Tensor:
        first, second, third = images
        return (first + second) * third.mean((2, 3), keepdim=True)


# Model, inputs for three images as pack() takes them, and the names in the file.
MODELS: dict[str, tuple[Callable[[], nn.Module], Any, list[str]]] = {
    "two images": (
        Siamese,
        (torch.randn(3, 3, 9, 8), torch.randn(3, 3, 12, 7)),
        ["left", "right"],
    ),
    "two images by name, in another order": (
        Siamese,
        {"right": torch.randn(3, 3, 9, 8), "left": torch.randn(3, 3, 9, 8)},
        ["left", "right"],
    ),
    "an image and a vector": (
        WithMetadata,
        (torch.randn(3, 3, 9, 8), torch.randn(3, 5)),
        ["image", "metadata"],
    ),
    "a parameter between them is left out": (
        WithMetadata,
        {"image": torch.randn(3, 3, 9, 8), "metadata": torch.randn(3, 5), "mask": torch.rand(3, 24)},
        ["image", "metadata", "mask"],
    ),
    "two vectors": (TwoVectors, (torch.randn(3, 7), torch.randn(3, 9)), ["v0", "b1"]),
    "any number": (
        Many,
        [torch.randn(3, 4, 6, 5), torch.randn(3, 4, 6, 5), torch.randn(3, 4, 2, 3)],
        ["images.0", "images.1", "images.2"],
    ),
}


def called(model: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return {key: each.numpy() for key, each in found.items()} if isinstance(found, dict) else found.numpy()


def assert_close(found: Any, expected: Any, rtol: float = 1e-4) -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected)
    pairs = [(found[k], expected[k]) for k in expected] if isinstance(expected, dict) else [(found, expected)]
    for one, other in pairs:
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bnew"


@pytest.mark.parametrize("what", MODELS)
def test_several_inputs(what: str, path: Path) -> None:
    make, inputs, names = MODELS[what]
    model = trained(make())
    file = bnew.pack(model, inputs, path)
    reference = Reference(path)
    check_tidy(reference.file)
    assert [each["name"] for each in reference.file.graph["inputs"]] == names == list(file.inputs)
    expected = called(model, inputs)
    given = [inputs[name] for name in names] if isinstance(inputs, dict) else list(inputs)
    arrays = [x.numpy() for x in given]
    images = [x.reshape(*x.shape, 1, 1) if x.ndim == 2 else x for x in arrays]
    assert_close(reference(*images), expected)
    if bnew_engine is None:
        return
    for isa in bnew_engine.isas():
        engine = bnew_engine.load(path, isa=isa)
        found = engine(*arrays)
        assert_close(found, expected)
        if isa == bnew_engine.isas()[0]:
            best = found
        named = dict(zip(names, arrays, strict=True))
        for other in (found, engine(named), engine(**named), engine(arrays), engine(*images)):
            assert_close(other, best, rtol=0)
        assert_close(bnew_engine.load(path, threads=2, isa=isa)(*arrays), best, rtol=0)
    assert [one.name for one in engine.inputs] == names
    assert [one.shape for one in engine.inputs] == [image.shape[1:] for image in images]
    values = engine.values(*arrays)
    for name, image in zip(names, images, strict=True):
        np.testing.assert_array_equal(values[name], image)


def test_weights_that_both_inputs_use_are_stored_once(path: Path) -> None:
    image = torch.randn(1, 3, 8, 8)
    file = bnew.pack(trained(Siamese()), (image, image), path)
    once = bnew.pack(trained(nn.Sequential(encoder(), nn.Linear(16, 4))), image, path.with_suffix(".one"))
    assert file.tensor_bytes == once.tensor_bytes + 4  # and the factor −1 of a difference


# ------------------------------------------------------------------------------------------- bytes


@needs_engine
def test_each_input_has_its_mean_and_std(path: Path) -> None:
    """Bytes for one input, floats for the others; all as the file says."""
    model = trained(WithMetadata())
    inputs = (torch.randn(2, 3, 9, 8), torch.randn(2, 5))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    bnew.pack(model, inputs, path, mean={"image": mean}, std={"image": std})
    engine = bnew_engine.load(path)
    np.testing.assert_allclose(engine.inputs[0].mean, mean)
    assert engine.inputs[1].std is None
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 3)).astype(np.uint8)
    image = ((pixels / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    metadata = inputs[1].numpy()
    expected = called(model, (torch.from_numpy(image.copy()), inputs[1]))
    assert_close(engine(pixels, metadata), expected)
    assert_close(engine(metadata=metadata, image=image), expected)
    assert_close(Reference(path)(pixels, metadata.reshape(2, 5, 1, 1)), expected)
    with pytest.raises(bnew_engine.EngineError, match=r"how bytes become 'metadata' \(no mean and std\)"):
        engine(pixels, np.zeros((2, 1, 1, 5), np.uint8))


# ------------------------------------------------------------------------------------------- refusals


class Unused(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.relu() + y.shape[1]


class Mixing(nn.Module):
    """Both images in one batch, as siamese networks are sometimes written."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((x, y)).relu()


class SignOfDifference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.sign(self.conv(x) - self.conv(y))


X, Y = torch.randn(2, 4, 5, 5), torch.randn(2, 3)
TWO: dict[str, Any] = {"left": X[:, :3], "right": X[:, :3]}
REFUSALS: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = {
    "unused": (Unused, (X, Y), {}, "the output of Unused does not depend on its input 'y'"),
    "mixes images": (Mixing, (X, X), {}, "cannot be packed"),
    "the same image twice": (SignOfDifference, (X, X), {}, "sign in the model itself.*cannot be packed"),
    "one too few": (Siamese, (X,), {}, "Siamese does not take these example inputs: missing .*'right'"),
    "one too many": (Siamese, (X, X, X), {}, "does not take these example inputs: too many positional"),
    "none": (Siamese, (), {}, "no tensor of floating-point numbers"),
    "another name": (Siamese, {"left": X, "rihgt": X}, {}, "does not take these example inputs: .*'right'"),
    "other shapes": (Siamese, (X, X), {}, r"does not take examples of shapes 'left' \(2, 4, 5, 5\), 'right'"),
    "a volume": (Unused, (X, torch.randn(2, 3, 4, 4, 4)), {}, r"input 'y' has shape \(2, 3, .*\), but must"),
    "whole numbers": (Unused, (X, torch.ones(2, 3).int()), {}, "'y' is no tensor of floating-point numbers"),
    "other numbers of images": (Unused, (X, Y[:1]), {}, "'x' is 2 images .*'y' 1 of .*give as many of each"),
    "other types": (Unused, (X, Y.double()), {}, "'y' 2 of torch.float64: give as many of each, of one type"),
    "any size": (Siamese, TWO, {"any_size": True}, "takes 2 inputs, and only one image has other sizes"),
    "resize": (Siamese, TWO, {"resize": (8, 8)}, "takes 2 inputs, and only one image has a resize"),
    "mean of which": (Siamese, TWO, {"mean": [0.5], "std": [0.5]}, "mean is .*give a dict by their names"),
    "mean of none": (Siamese, TWO, {"mean": {"z": [0.5]}}, "unknown input in mean 'z': allowed are .*right"),
    "mean alone": (Siamese, TWO, {"mean": {"left": [0.5]}}, "mean and std belong together"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals(what: str, path: Path) -> None:
    make, inputs, options, message = REFUSALS[what]
    with pytest.raises(BnewError, match=message) as caught:
        bnew.pack(trained(make()), inputs, path, **options)
    assert "\n" not in str(caught.value)
    assert not path.exists()


@needs_engine
def test_a_sign_of_0_of_two_images_that_may_be_the_same(path: Path) -> None:
    """bnew's own sign is +1 there, in PyTorch as in the file."""
    x, y = torch.randn(2, 1, 4, 5, 5)
    model = SignOfDifference().eval()
    conv = model.conv

    class Own(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return bnew.sign(conv(x) - conv(y))

    bnew.pack(Own(), (x, y), path)
    for other in (x, y):
        images = [each.numpy() for each in (x, other)]
        assert_close(bnew_engine.load(path)(*images), called(Own(), (x, other)))


@needs_engine
def test_what_the_engine_refuses(path: Path) -> None:
    bnew.pack(trained(WithMetadata()), (torch.randn(1, 3, 9, 8), torch.randn(1, 5)), path)
    engine = bnew_engine.load(path)
    image, metadata = np.zeros((2, 3, 9, 8), np.float32), np.zeros((2, 5), np.float32)
    takes = "the network takes 'image' and 'metadata', and "
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: engine(image), f"{takes}'metadata' was not given"),
        (lambda: engine(), f"{takes}'image' was not given"),
        (lambda: engine(image, metadata, metadata), f"{takes}3 inputs were given"),
        (lambda: engine(image, data=metadata), f"{takes}no 'data'"),
        (lambda: engine(image, image=image), "'image' was given twice: once in order, and once by name"),
        (lambda: engine(image, metadata[:1]), "'image' has 2 images and 'metadata' 1: give as many"),
        (lambda: engine(image, metadata[:, :4]), r"'metadata' has shape \(2, 4\), but float32"),
        (lambda: engine(metadata, image), r"'image' has shape \(2, 5\), but float32 .* \(N, 3, 9, 8\)"),
        (lambda: engine(image, metadata.astype(int)), "'metadata' is int64, but must be float32"),
        (lambda: engine(image, metadata * np.nan), "the input 'metadata' has numbers that are not finite"),
        (lambda: engine.predict(image), r"takes several inputs \(image, metadata\), and not one image"),
        (lambda: engine.input_shape, "takes several inputs"),
        (lambda: engine.mean, "takes several inputs"),
        (lambda: engine.at(9, 8), "it takes several inputs, and runs for those of its own sizes only"),
        (lambda: engine.profile((image, metadata)), r"image has shape \(2, 3, 9, 8\): give one image"),
    ]
    for call, message in wrong:
        with pytest.raises(bnew_engine.EngineError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the graph of a file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    graph = json.loads(header["__metadata__"]["graph"])
    change(graph)
    header["__metadata__"]["graph"] = json.dumps(graph)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(resealed(len(text).to_bytes(8, "little") + text + data[8 + length :]))


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: graph["inputs"].pop(),
        lambda graph: graph["inputs"].clear(),
        lambda graph: graph.pop("inputs"),
        lambda graph: graph.update(input=graph["inputs"][0]),
        lambda graph: graph.update(inputs=3),
        lambda graph: graph["inputs"][1].update(name="image"),
        lambda graph: graph["inputs"][1].update(name=["image"]),
        lambda graph: graph["inputs"][1].update(shape=[5]),
        lambda graph: graph["inputs"][1].pop("shape"),
    ],
)
def test_a_damaged_file_is_refused_by_both_readers(change: Any, path: Path) -> None:
    bnew.pack(trained(WithMetadata()), (torch.randn(1, 3, 9, 8), torch.randn(1, 5)), path)
    edited(path, lambda graph: None)
    PackedFile.read(path)
    edited(path, change)
    with pytest.raises(BnewError, match=r"is damaged .*pack the network again") as caught:
        PackedFile.read(path)
    assert "\n" not in str(caught.value)
    if bnew_engine is not None:
        with pytest.raises(bnew_engine.EngineError) as refused:
            bnew_engine.load(path)
        assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------- around the engine


@needs_engine
@pytest.mark.parametrize("named", [False, True])
def test_verify(named: bool, path: Path) -> None:
    model = trained(Siamese())
    inputs = [(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)) for _ in range(2)]
    bnew.pack(model, inputs[0], path)
    labels = torch.zeros(4, dtype=torch.long)
    data: list[Any] = [
        (dict(zip(("right", "left"), two[::-1], strict=True)) if named else two, labels) for two in inputs
    ]
    found = bnew.verify(path, model, data)
    assert found.ok
    assert [layer.name for layer in found.layers] == ["encoder.2", "encoder.2#2"]
    assert all(layer.integers == 4 * 16 * 8 * 8 and layer.wrong == 0 for layer in found.layers)
    assert found.images == 8
    if not named:  # the inputs in the wrong order are another network

        class Swapped(Siamese):
            def forward(self, left: Tensor, right: Tensor) -> Tensor:
                result: Tensor = super().forward(right, left)
                return result

        other = Swapped().eval()
        other.load_state_dict(model.state_dict())
        assert not bnew.verify(path, other, data).ok


@needs_engine
def test_verify_where_a_layer_sees_the_same_twice(path: Path) -> None:
    """The file computes it once."""

    class Twice(Siamese):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            same = self.encoder(left) + self.encoder(left)
            result: Tensor = self.head(same - self.encoder(right))
            return result

    model = trained(Twice())
    inputs = (torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8))
    bnew.pack(model, inputs, path)
    found = bnew.verify(path, model, [(inputs, torch.zeros(4, dtype=torch.long))])
    assert found.ok
    assert len(found.layers) == 2


@needs_engine
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (X[:, :3], "takes the inputs left, right, but data has 1 for each image"),
        ({"left": X[:, :3], "x": X[:, :3]}, "takes the inputs left, right, but data has left, x"),
        ((X[:, :3], X), r"takes images of \(3, 5, 5\) for 'right', but those of data are \(4, 5, 5\)"),
        ((X, None), "a batch of data is a tuple.* must be a pair of tensors"),
    ],
)
def test_verify_refuses(images: Any, message: str, path: Path) -> None:
    model = trained(Siamese())
    bnew.pack(model, (X[:, :3], X[:, :3]), path)
    with pytest.raises(BnewError, match=message):
        bnew.verify(path, model, [(images, torch.zeros(2))])


@pytest.mark.parametrize("what", ["two images by name, in another order", "two vectors", "any number"])
def test_onnx_keeps_the_names(what: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    make, inputs, names = MODELS[what]
    model = trained(make())
    check = export_onnx(model, inputs, tmp_path / "model.onnx")
    assert check is not None
    assert check.agrees
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert sorted(one.name for one in session.get_inputs()) == sorted(names)
    assert all(isinstance(one.shape[0], str) for one in session.get_inputs())  # any number of images
    one = {name: x[:1] for name, x in inputs.items()} if isinstance(inputs, dict) else [x[:1] for x in inputs]
    arrays = {
        name: x.numpy()
        for name, x in (one.items() if isinstance(one, dict) else zip(names, one, strict=True))
    }
    (found,) = session.run(None, arrays)
    assert_close(found, called(model, one), rtol=1e-3)


def test_onnx_is_written_for_one_result(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    inputs = (torch.randn(2, 3, 9, 8), torch.randn(2, 5))
    with pytest.raises(BnewError, match="returns 2 tensors, and an ONNX graph is written for one"):
        export_onnx(trained(WithMetadata()), inputs, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@needs_engine
def test_the_command_line(path: Path, cli: Cli) -> None:
    model = trained(WithMetadata())
    file = bnew.pack(
        model,
        (torch.randn(1, 3, 9, 8), torch.randn(1, 5)),
        path,
        mean={"image": [0.5] * 3},
        std={"image": [0.5] * 3},
    )
    assert "3×9×8 and 5×1×1 → 4" in repr(file)
    code, out, _ = cli("info", str(path))
    assert code == 0
    for line in ("input 'image'", "3×9×8, or images of bytes", "input 'metadata'", "5×1×1"):
        assert line in out
    code, out, _ = cli("bench", str(path), "--batch", "2", "--threads", "1")
    assert code == 0
    assert out.count("bnew-engine") == 2
    assert len(bench(path, threads=1, batch=2, model=model, seconds=0.01).rows) == 4
    images = torch.randn(1, 3, 9, 8), torch.randn(1, 3, 9, 8)
    bnew.pack(trained(Siamese()), images, path)
    (path.parent / "x.png").write_bytes(b"")
    for words in (
        ("predict", str(path), str(path.parent / "x.png")),
        ("eval", str(path), "--data-dir", str(path.parent)),
        ("export", str(path), str(path.parent / "c"), "--format", "c"),
    ):
        code, _, err = cli(*words)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
        assert "several inputs" in err or "takes 2 inputs" in err


@needs_engine
def test_the_example_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "packing.md").read_text("utf-8")
    code = page.partition("## Several inputs")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "example"})
    out = capsys.readouterr().out
    assert "the file is the network" in out
    name, accuracy = out.splitlines()[-1].split()
    assert name == "right"
    assert float(accuracy) > 0.85
