"""eval: counts against scikit-learn, what is printed and written, and ways to name a network and images."""

from __future__ import annotations

import csv
import io
import json
import re
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MACHINE, RECIPE, Cli
from PIL import Image
from rich.cells import cell_len
from scipy.stats import binomtest
from sklearn import metrics
from torch import nn

import bnew
from bnew import BnewError
from bnew.deploy.pack_run import pack_run
from bnew.results.evaluation import Evaluation
from bnew.results.metrics import Tally
from bnew.results.run import Run
from bnew.shares import wilson
from bnew.training.evaluation import evaluate_run, load_run
from bnew.training.loop import train

# --------------------------------------------------------------------------------------------- the counts


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 9), (812, 1000), (1, 10**6)]
)
def test_the_interval_is_wilsons(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1


def test_nothing_is_known_of_no_images() -> None:
    assert wilson(0, 0) == (0, 1)


def counted(
    outputs: Any, labels: Any, kind: str = "numbers", batch: int = 7, worst: int = 0, names: Any = None
) -> Evaluation:
    """Counted in batches; the picture of image n is of the colour n."""
    tally = Tally(outputs.shape[1], kind, worst)
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        pictures = (np.arange(start, start + batch) % 256).astype(np.uint8).repeat(6)
        tally.add(outputs[part], labels[part], pictures.reshape(-1, 2, 3, 1).__getitem__)
    return Evaluation.of(tally, "network", "data", names or [f"c{i}" for i in range(outputs.shape[1])])


@pytest.mark.parametrize("classes", [2, 5, 6, 40])
@pytest.mark.parametrize("missing", [None, 1])
@pytest.mark.parametrize("ties", [False, True])
def test_counts_are_scikit_learns(classes: int, missing: int | None, ties: bool) -> None:
    """Also where a class has no images, one is never predicted, and outputs are equal."""
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, 300)
    if missing is not None:
        labels[labels == missing] = 0
    outputs = random.normal(size=(300, classes)).astype(np.float32)
    outputs[np.arange(300), labels] += 1
    outputs[:, 0] -= 20 if classes > 2 else 0  # never predicted
    if ties:
        outputs = outputs.round()
    found = counted(outputs, labels)
    every = range(classes)
    # Of equal outputs, scikit-learn takes the last class; so it sees them with the classes in reverse.
    predicted = outputs.argmax(1)
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(labels, predicted, labels=every))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    precision, recall, _, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=np.nan
    )
    for each, *numbers in zip(found.per_class, precision, recall, support, strict=True):
        shares = [np.nan if share is None else share for share in (each.precision, each.recall)]
        np.testing.assert_allclose([*shares, each.images], numbers)
    probabilities = torch.from_numpy(outputs).double().softmax(1).numpy()
    assert found.loss == pytest.approx(metrics.log_loss(labels, probabilities, labels=every), rel=1e-9)
    if classes <= 5:
        assert found.top5 is None
        return
    reverse = classes - 1 - labels
    expected = metrics.top_k_accuracy_score(reverse, outputs[:, ::-1], k=5, labels=every)
    assert found.top5 == pytest.approx(expected)
    assert found.top5_interval == wilson(round(expected * 300), 300)


def test_loss_follows_from_what_the_outputs_are() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(50, 4)) * 300, random.integers(0, 4, 50)
    shares = torch.from_numpy(logits / 300).softmax(1).numpy()
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert counted(logits, labels).loss == pytest.approx(float(expected), rel=1e-12)
    of_shares, of_logits = counted(shares, labels, "softmax"), counted(logits / 300, labels)
    assert of_shares.loss == pytest.approx(of_logits.loss, rel=1e-12)
    assert counted(shares, labels, "sigmoid").loss is None
    assert "loss" not in str(counted(shares, labels, "sigmoid"))


def test_the_worst_mistakes_are_kept() -> None:
    random = np.random.default_rng(1)
    outputs, labels = random.normal(size=(100, 3)).round(1), random.integers(0, 3, 100)
    shares = torch.from_numpy(outputs).softmax(1).numpy()
    wrong = [i for i in range(100) if outputs[i].argmax() != labels[i]]
    expected = sorted(wrong, key=lambda i: (shares[i, labels[i]].round(12), i))[:9]
    for batch in (1, 7, 100):
        found = counted(outputs, labels, batch=batch, worst=9).mistakes
        assert [int(mistake.picture[0, 0, 0]) for mistake in found if mistake.picture is not None] == expected
        for mistake, i in zip(found, expected, strict=True):
            assert (mistake.label, mistake.predicted) == (labels[i], outputs[i].argmax())
            assert mistake.share == pytest.approx(shares[i, labels[i]])
            assert mistake.predicted_share == pytest.approx(shares[i].max())


def test_parts_are_merged() -> None:
    random = np.random.default_rng(2)
    outputs, labels = random.normal(size=(60, 7)), random.integers(0, 7, 60)
    whole, parts = Tally(7, worst=4), [Tally(7, worst=4) for _ in range(2)]
    whole.add(outputs, labels)
    for rank, part in enumerate(parts):
        part.add(outputs[rank::2], labels[rank::2])
    parts[0].merge(parts[1])
    assert (parts[0].top5, parts[0].images) == (whole.top5, 60)
    assert parts[0].loss == pytest.approx(whole.loss)
    np.testing.assert_array_equal(parts[0].confusion, whole.confusion)
    assert [mistake.share for mistake in parts[0].mistakes] == [mistake.share for mistake in whole.mistakes]


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (np.zeros((2, 3)), np.array([0, 3]), "an image has the label 3, but there are 3 classes"),
        (np.zeros((2, 3)), np.array([0, -1]), "an image has the label -1"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "the labels are float64"),
        (np.zeros((2, 4)), np.array([0, 1]), r"returns \(2, 4\) for images with labels \(2,\)"),
        (np.zeros((2, 3)), np.array([[0], [1]]), r"labels \(2, 1\)"),
        (np.array([[0, np.nan, 0]]), np.array([1]), "is NaN or infinite"),
        (np.array([[0, np.inf, 0]]), np.array([1]), "is NaN or infinite"),
    ],
)
def test_what_cannot_be_counted_is_refused(outputs: Any, labels: Any, message: str) -> None:
    tally = Tally(3)
    with pytest.raises(BnewError, match=message):
        tally.add(outputs, labels)
    assert tally.images == 0


def test_there_must_be_classes_and_images() -> None:
    with pytest.raises(BnewError, match="one output, but classes are compared of two or more"):
        Tally(1)
    with pytest.raises(BnewError, match="there are no images"):
        Evaluation.of(Tally(2), "network", "data", ["a", "b"])
    small = Tally(200)
    small.add(np.eye(200, dtype=np.float32), np.arange(200, dtype=np.uint8))  # whose products would overflow
    assert np.trace(small.confusion) == 200


# --------------------------------------------------------------------------------------------- what it shows

NAMES = {
    "short": lambda i: str(i),
    "long": lambda i: f"a name that is longer than a column may be, number {i}",
    "wide": lambda i: "猫" * 30 + str(i),
    "of others": lambda i: f"[bold]\x1b[2J<b>&{i}\n",
}


@pytest.mark.parametrize("classes", [2, 14, 20, 21, 300])
@pytest.mark.parametrize("kind", NAMES)
def test_tables_fit_into_80_columns(classes: int, kind: str) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 20_000)
    outputs = random.normal(size=(20_000, classes))
    found = counted(outputs, labels, batch=5000, names=list(map(NAMES[kind], range(classes))))
    lines = str(found).splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert "\x1b" not in str(found)
    assert len(lines) < 60
    matrix = "How many images of each class" in str(found)
    assert matrix == (classes <= 20)
    assert ("confused most often" in str(found)) != matrix
    if classes == 300:
        assert "290 more have a recall of at least" in str(found)
        assert str(found.confused()[0].times) in str(found)


def test_a_matrix_that_is_too_wide_becomes_pairs() -> None:
    tally = Tally(14)
    tally.confusion += 54_321
    text = str(Evaluation.of(tally, "network", "data", list(map(str, range(14)))))
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "54,321" in text


def test_the_most_frequent_pairs_come_first() -> None:
    tally = Tally(3)
    tally.confusion += np.array([[5, 1, 0], [0, 5, 2], [7, 0, 3]])
    pairs = Evaluation.of(tally, "network", "data", ["a", "b", "c"]).confused(2)
    assert [(pair.label, pair.predicted, pair.times) for pair in pairs] == [("c", "a", 7), ("b", "c", 2)]
    assert pairs[0].share == 0.7


def test_plain_data(tmp_path: Path) -> None:
    outputs, labels = np.eye(3)[[0, 1, 1, 0]], np.array([0, 1, 0, 1])
    found = counted(outputs, labels)
    data = json.loads(json.dumps(found.to_dict()))
    assert (data["top1"], data["top5"], data["images"]) == (0.5, None, 4)
    assert (
        data["classes"][2]["recall"]
        is data["classes"][2]["precision"]
        is data["classes"][2]["recall_low"]
        is None
    )
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [(row["class"], row["images"], row["right"], row["recall"]) for row in rows] == [
        ("c0", "2", "1", "0.5"), ("c1", "2", "1", "0.5"), ("c2", "0", "0", ""),
    ]  # fmt: skip


def test_the_page_holds_all_and_escapes_names(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    outputs, labels = random.normal(size=(100, 3)), random.integers(0, 3, 100)
    names = ["<script>alert(1)</script>", '" onload="x', "été\u202e"]
    found = counted(outputs, labels, worst=5, names=names)
    found.write_page(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<script" not in page
    assert 'onload="' not in page
    assert "\u202e" not in page
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    for picture, mistake in zip(pictures, found.mistakes, strict=True):
        assert mistake.picture is not None
        shown = np.asarray(Image.open(io.BytesIO(b64decode(picture))))
        np.testing.assert_array_equal(shown, mistake.picture[:, :, 0])
    assert f"{100 * found.accuracy:.2f} %" in page
    assert page.count("<tr>") == 1 + 3 + 1 + 3  # classes, and the matrix
    with pytest.raises(BnewError, match="there is no folder"):
        found.write_page(tmp_path / "none" / "page.html")


def test_a_large_picture_becomes_smaller_and_many_classes_pairs(tmp_path: Path) -> None:
    tally = Tally(40, worst=1)
    tally.add(np.eye(40)[[1, 2]], np.array([3, 4]), lambda _: np.zeros((600, 300, 3), np.uint8))
    Evaluation.of(tally, "network", "data", list(map(str, range(40)))).write_page(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert Image.open(io.BytesIO(b64decode(picture))).size == (128, 256)
    assert "Confused most often" in page
    assert "3 → 1" in page


# --------------------------------------------------------------------------------------------- networks


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """``bnew`` in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(RECIPE.replace(epochs=2, batch_size=64), tmp_path_factory.mktemp("runs") / "run", MACHINE)


@pytest.fixture(scope="module")
def file(run: Run) -> Path:
    pytest.importorskip("bnew_engine")
    path = run.path.parent / "model.bnew"
    pack_run(run, path, MACHINE)
    return path


@pytest.fixture(scope="module")
def digits(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images as test/CLASS/*.png."""
    folder = tmp_path_factory.mktemp("digits")
    data: Any = load_run(run, MACHINE)[1]
    for number, (image, label) in enumerate(zip(data.test.images, data.test.labels.tolist(), strict=True)):
        (folder / "test" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"test/{label}/{number:04}.png")
    return folder


def test_a_run_is_as_good_as_it_was_when_trained(run: Run) -> None:
    found = bnew.evaluate(run.path, device="cpu")
    assert found.accuracy == run.summary["test_accuracy"]
    assert found.loss == pytest.approx(run.summary["test_loss"], rel=1e-6)
    assert found.images == found.confusion.sum() == 359
    assert len(found.mistakes) == min(24, 359 - found.hits)
    data: Any = load_run(run, MACHINE)[1]
    shown = {mistake.picture.tobytes() for mistake in found.mistakes if mistake.picture is not None}
    assert shown <= {
        image.permute(1, 2, 0).numpy().tobytes() for image in data.test.images
    }  # as in the data set


def test_a_packed_file_is_as_good_as_its_run(run: Run, file: Path, digits: Path) -> None:
    expected = evaluate_run(run, MACHINE)
    for found in (bnew.evaluate(file, data_dir=digits), bnew.evaluate(file, "digits")):
        assert found.data in (str(digits / "test"), "digits, test")
        assert np.abs(found.confusion - expected.confusion).sum() <= 2  # a sign of a 0 but for rounding
        assert found.loss == pytest.approx(expected.loss, rel=1e-3)
        assert found.classes == expected.classes
    val = bnew.evaluate(file, "digits", split="val")
    assert val.images == 143


def test_a_packed_file_predicts_what_is_evaluated(file: Path, digits: Path) -> None:
    found = bnew.evaluate(file, data_dir=digits / "test")  # class folders alone
    predicted = bnew.predict(file, digits, top=1, batch=50)
    wrong = {each.path for each in predicted if each.classes[0][0] != each.path.parent.name}
    assert {mistake.file for mistake in found.mistakes} <= wrong
    for mistake in found.mistakes:
        assert mistake.file is not None
        assert mistake.file.parent.name == found.classes[mistake.label]
        np.testing.assert_array_equal(np.asarray(Image.open(mistake.file))[:, :, None], mistake.picture)
    hits = sum(each.classes[0][0] == each.path.parent.name for each in predicted)
    assert found.hits == hits


def test_batches_of_ones_own(run: Run, file: Path) -> None:
    model, data = load_run(run, MACHINE)
    batches = list(data.batches("test", 100, train=False))
    expected = evaluate_run(run, MACHINE)
    for network, given in ((model, batches), (model, data), (run, batches), (run, data)):
        found = bnew.evaluate(network, given)
        np.testing.assert_array_equal(found.confusion, expected.confusion)
    assert bnew.evaluate(file, batches).hits == pytest.approx(expected.hits, abs=2)
    assert bnew.evaluate(model, batches).classes[3] == "class 3"
    assert bnew.evaluate(model, batches, classes=list("abcdefghij")).classes[3] == "d"
    shifted = replace(data, mean=(0.9,), std=(0.1,))  # the network's own mean and std are used
    for trained in (run, file):
        assert bnew.evaluate(trained, shifted).hits == pytest.approx(expected.hits, abs=2)
    with pytest.raises(BnewError, match=r"has the classes 0, 1, .*, but digits has 1×8×8 and a, b"):
        bnew.evaluate(run, replace(data, classes=tuple("abcdefghij")))
    model.train()
    bnew.evaluate(model, batches)
    assert model.training


class Ends(nn.Module):
    """A linear layer and what follows it."""

    def __init__(self, *parts: nn.Module, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.Sequential(nn.Flatten(), nn.Linear(12, outputs), *parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.parts(x)
        return y


class Listed(nn.Module):
    """Returns its input in a list."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


@pytest.mark.parametrize("ending", ["numbers", "softmax", "sigmoid"])
def test_a_files_outputs_are_what_its_graph_says(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("bnew_engine")
    after = {"numbers": nn.Identity(), "softmax": nn.Softmax(1), "sigmoid": nn.Sigmoid()}
    model = Ends(after[ending]).eval()
    bnew.pack(model, torch.zeros(1, 3, 2, 2), tmp_path / "m.bnew")
    x, y = torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3
    found = bnew.evaluate(tmp_path / "m.bnew", [(x, y)])
    outputs = model(x).detach()
    assert found.hits == int((outputs.argmax(1) == y).sum())
    losses = {
        "numbers": torch.nn.functional.cross_entropy(outputs, y),
        "softmax": torch.nn.functional.nll_loss(outputs.log(), y),
    }
    assert found.loss == (None if ending == "sigmoid" else pytest.approx(float(losses[ending]), rel=1e-5))


def test_eval_in_a_terminal_of_80_columns(
    cli: Cli, run: Run, file: Path, digits: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    for words in ((run.path, "--device", "cpu"), (file, "--data-dir", digits), (file, "--data", "digits")):
        code, out, _ = cli("eval", *words, "--page", page)
        assert code == 0
        assert max(map(len, out.splitlines()[1:])) <= 80  # the first line has the path
        assert "top-5" in out
        assert page.read_text().count("<figure>") > 0
        page.unlink()


def test_eval_as_json_and_csv(cli: Cli, run: Run, file: Path, digits: Path) -> None:
    expected = evaluate_run(run, MACHINE)
    code, out, _ = cli("eval", run.path, "--device", "cpu", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(expected.to_dict()))
    code, out, _ = cli("eval", run.path, "--device", "cpu", "--csv")
    assert (code, out) == (0, expected.to_csv())
    rows = list(csv.DictReader(io.StringIO(cli("eval", file, "--data-dir", digits, "--csv")[1])))
    assert sum(int(row["images"]) for row in rows) == 359


def test_an_unreadable_image_is_named_and_the_others_count(
    cli: Cli, file: Path, digits: Path, tmp_path: Path
) -> None:
    for label in ("0", "7"):
        (tmp_path / label).mkdir()
        for path in sorted((digits / "test" / label).iterdir())[:3]:
            (tmp_path / label / path.name).write_bytes(path.read_bytes())
    broken = sorted((tmp_path / "0").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:40])
    code, out, err = cli("eval", file, "--data-dir", tmp_path, "--json")
    assert code == 2
    assert str(broken) in err
    assert (json.loads(out)["images"], json.loads(out)["unreadable"]) == (5, 1)
    assert [each["images"] for each in json.loads(out)["classes"]][:8] == [2, 0, 0, 0, 0, 0, 0, 3]
    with pytest.raises(BnewError, match=str(broken)):
        bnew.evaluate(file, data_dir=tmp_path)


OWN = """
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset, Subset
def digits(few=False):
    found = load_digits()
    images = (torch.from_numpy(found.images) * 255 / 16).round().byte().unsqueeze(1)
    data = TensorDataset(images, torch.from_numpy(found.target))
    test = Subset(data, range(1400, 1420 if few else 1797))
    return {"train": Subset(data, range(1400)), "test": test, "classes": [f"digit {i}" for i in range(10)]}
"""


def test_a_data_set_of_ones_own(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bnew_engine")
    (tmp_path / "mine_to_evaluate.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    run = train(RECIPE.replace(data="mine_to_evaluate:digits"), tmp_path / "run", MACHINE)
    pack_run(run, tmp_path / "m.bnew", MACHINE)
    code, out, _ = cli("eval", "run", "--device", "cpu")
    assert code == 0
    assert "397 images" in out
    assert "digit 9" in out
    options = ("--data", "mine_to_evaluate:digits", "--data-options", "few=true")
    code, out, _ = cli("eval", "m.bnew", *options, "--json")
    assert code == 0
    assert json.loads(out)["images"] == 20
    assert json.loads(out)["classes"][9]["class"] == "digit 9"
    code, _, err = cli("eval", "m.bnew", "--data", "digits")
    assert code == 2
    assert "has the classes digit 0, digit 1" in err


MISTAKES: dict[str, tuple[str, str]] = {
    "no images": ("eval FILE", "holds no images: give --data-dir a folder of images"),
    "no folder": ("eval FILE --data-dir /nowhere", "'/nowhere' does not exist"),
    "no such part": ("eval FILE --data-dir DIGITS --split val", "has no folder val: give --split a folder"),
    "unknown data": ("eval FILE --data digit", "unknown data set 'digit': did you mean 'digits'?"),
    "data of a run": ("eval RUN --data digits", "a run knows its own: leave it out"),
    "two formats": ("eval RUN --json --csv", "two formats: give one"),
    "two formats of predictions": ("predict FILE DIGITS --json --csv", "two formats: give one"),
    "page in no folder": ("eval RUN --device cpu --page /nowhere/x.html", "there is no folder /nowhere"),
    "no batch": ("predict FILE DIGITS --batch 0", "batch is 0: give a whole number of at least 1"),
    "no file fits": ("predict FILE /nowhere/*.png", "no file that fits this pattern"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_end_with_one_sentence(what: str, cli: Cli, run: Run, file: Path, digits: Path) -> None:
    line, message = MISTAKES[what]
    named = {"RUN": run.path, "FILE": file, "DIGITS": digits}
    code, out, err = cli(*(named.get(word, word) for word in line.split()))
    assert code == 2
    assert ("top-1" in out) == (what == "page in no folder")  # nothing that was computed is lost
    (said,) = err.splitlines()
    assert said.startswith("bnew: error: ")
    assert message in said


def test_a_file_must_know_how_images_are_prepared(tmp_path: Path, digits: Path) -> None:
    pytest.importorskip("bnew_engine")
    model, x = Ends(outputs=10).eval(), torch.zeros(1, 3, 2, 2)
    bnew.pack(model, x, tmp_path / "m.bnew")
    with pytest.raises(BnewError, match=r"has no names of classes: pack it with mean=, std= and classes="):
        bnew.evaluate(tmp_path / "m.bnew", data_dir=digits)
    bnew.pack(model, x, tmp_path / "m.bnew", classes=list("0123456789"))
    with pytest.raises(BnewError, match="has no mean and std of images"):
        bnew.evaluate(tmp_path / "m.bnew", data_dir=digits)
    bnew.pack(Ends(outputs=1).eval(), x, tmp_path / "one.bnew")
    with pytest.raises(BnewError, match="one output, but classes are compared"):
        bnew.evaluate(tmp_path / "one.bnew", [(torch.zeros(2, 3, 2, 2), torch.zeros(2, dtype=torch.int64))])
    with pytest.raises(BnewError, match="a module is evaluated on images: give data"):
        bnew.evaluate(model)
    with pytest.raises(BnewError, match="a data set is named only for a packed file"):
        bnew.evaluate(model, "digits")
    with pytest.raises(BnewError, match="there are no images"):
        bnew.evaluate(model, [])
    with pytest.raises(BnewError, match="a batch of data is a Tensor, but must be a pair"):
        bnew.evaluate(model, [x])  # type: ignore[list-item]
    with pytest.raises(BnewError, match="the network returns a list of 1, but must return one tensor"):
        bnew.evaluate(Listed(), [(x, torch.tensor([1]))])
    with pytest.raises(BnewError, match="returns 10 numbers for an image, but there are 2 classes"):
        bnew.evaluate(model, [(x, torch.tensor([1]))], classes=["a", "b"])
