"""What training does to images by name, and mixup: each against its own twin, and resumed as if unbroken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import MACHINE, RECIPE
from test_train_options import resumed_as_unbroken
from torch import Tensor
from torchvision.transforms import v2

from bnew.data.in_memory import MemoryBatches, MemoryDataset, Split, trivial
from bnew.data.sources import load, load_in_memory
from bnew.data.transforms import training_transform, validation_transform
from bnew.errors import BnewError
from bnew.recipe import AUGMENTATIONS
from bnew.training.losses import mixed
from bnew.training.run_data import load_data


def bytes_of(data: MemoryDataset, **options: int) -> tuple[Tensor, Tensor]:
    """The images of an epoch as the network sees them, in bytes, and their labels."""
    batches = data.batches("train", 256, train=True, **options)
    images, labels = map(torch.cat, zip(*batches.epoch(1), strict=True))
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    return ((images * std + mean) * 255).round(), labels


def test_without_augmentation_every_image_comes_as_it_is() -> None:
    data = load_in_memory("digits")
    images, labels = bytes_of(data.augmented("none"))
    batches = data.batches("train", 256, train=True)
    order = batches.order(batches.generator(1))
    assert torch.equal(images, data.train.images[order].float())
    assert torch.equal(labels, data.train.labels[order])


def test_the_named_ones_and_the_data_sets_own() -> None:
    data = load_in_memory("digits")  # whose own is a crop after padding, without mirror images
    assert torch.equal(bytes_of(data.augmented("flip_crop"))[0], bytes_of(data)[0])
    assert data.augmented("resized_crop").augmentation.least_area == 0.08
    for name in AUGMENTATIONS:
        assert not data.augmented(name).augmentation.flip, "a mirrored digit is another one"
        assert torch.equal(bytes_of(data.augmented(name))[1], bytes_of(data)[1]), "the same order"


def test_trivial_augment_is_torchvisions_with_a_seed_for_each_image() -> None:
    images = torch.randint(256, (6, 3, 9, 7), dtype=torch.uint8)
    state = torch.get_rng_state()
    changed = trivial(images, [5, 1, 4, 2, 3, 9])
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers stay"
    assert not torch.equal(changed, images)
    for image, seed, got in zip(images, [5, 1, 4, 2, 3, 9], changed, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(got, v2.TrivialAugmentWide()(image))
    assert torch.equal(trivial(images[3:], [2, 3, 9]), changed[3:])


def test_trivial_augment_does_not_depend_on_the_number_of_processes_or_where_an_epoch_begins() -> None:
    data = load_in_memory("digits").augmented("trivial")
    whole = [x for x, _ in data.batches("train", 256, train=True).epoch(2)]
    other = [x for x, _ in data.batches("train", 256, train=True).epoch(3)]
    assert not torch.equal(whole[0], other[0])
    for rank in range(2):
        part = data.batches("train", 256, train=True, rank=rank, world_size=2).epoch(2, start=3)
        for got, of in zip(part, whole[3:], strict=True):
            assert torch.equal(got[0], of[rank::2])


def test_trivial_augment_needs_bytes() -> None:
    data = load_in_memory("digits")
    floats = replace(data, train=Split(data.train.images.float(), data.train.labels))
    assert isinstance(floats.batches("train", train=True), MemoryBatches)
    with pytest.raises(
        BnewError, match=r"images of digits are floats: let your data set return torch\.uint8"
    ):
        floats.augmented("trivial")


def test_trivial_augment_needs_1_or_3_channels() -> None:
    data = load_in_memory("digits")
    two = replace(data, train=Split(data.train.images.repeat(1, 2, 1, 1), data.train.labels))
    assert two.augmented("flip_crop").image_size[0] == 2
    with pytest.raises(BnewError, match="1 or 3 channels, but those of digits have 2: take another"):
        two.augmented("trivial")


def test_images_from_files_have_the_same_names() -> None:
    image = torch.randint(256, (3, 40, 60), dtype=torch.uint8)

    def drawn(transform: v2.Transform, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return transform(image)  # type: ignore[no-any-return]

    same = [[], []]  # type: list[list[bool]]
    for seed in range(8):
        crop = drawn(training_transform(28), seed)
        assert torch.equal(drawn(training_transform(28, "resized_crop"), seed), crop)
        assert torch.equal(drawn(training_transform(28, "none"), seed), validation_transform(28)(image))
        trivially = drawn(training_transform(28, "trivial"), seed)
        flipped = drawn(training_transform(28, "flip_crop"), seed)
        assert trivially.shape == flipped.shape == crop.shape == (3, 28, 28)
        same[0].append(torch.equal(trivially, crop))
        small = v2.Resize(32, antialias=True)(image)
        places = [
            torch.equal(flipped, part if not mirrored else part.flip(2))
            for top in range(5)
            for left in range(small.shape[2] - 27)
            for part in (small[:, top : top + 28, left : left + 28],)
            for mirrored in (False, True)
        ]
        assert any(places), "a crop of the image that validation scales"
        same[1].append(torch.equal(flipped, drawn(training_transform(28, "flip_crop"), seed + 100)))
    assert not all(same[0])
    assert not all(same[1])


def test_a_folder_that_is_read_while_needed_takes_a_name(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    data = load("imagenet", tmp_path, image_size=28, workers=1)
    plain = data.augmented("none")
    batches = plain.batches("train", 16, train=True)
    (images, labels), *_ = batches.epoch(0)
    order = batches.order(batches.generator(0))
    (evaluated, of), *_ = plain.batches("train", 16, train=False).epoch(0)
    assert torch.equal(images, evaluated[order]), "also without lighting noise"
    assert torch.equal(labels, of[order])
    recipe = RECIPE.replace(data="imagenet", image_size=28, augment="trivial")
    named = load_data(recipe, replace(MACHINE, data_dir=str(tmp_path), decode_threads=1))
    assert not torch.equal(next(named.batches("train", 16, train=True).epoch(0))[0], images)


def test_mixup_mixes_images_and_shares_of_classes_alike() -> None:
    torch.manual_seed(3)
    images, labels = torch.randn(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    shares = set()
    for seed in range(20):
        torch.manual_seed(seed)
        share = torch.distributions.Beta(0.4, 0.4).sample()
        other = torch.randperm(6)
        torch.manual_seed(seed)
        got, targets = mixed(RECIPE.replace(mixup=0.4), images, labels, 3)
        torch.testing.assert_close(got, share * images + (1 - share) * images[other])
        torch.testing.assert_close(
            F.cross_entropy(torch.eye(6, 3), targets),
            share * F.cross_entropy(torch.eye(6, 3), labels)
            + (1 - share) * F.cross_entropy(torch.eye(6, 3), labels[other]),
        )
        shares.add(round(share.item(), 3))
    assert len(shares) > 10
    assert mixed(RECIPE, images, labels, 3)[0] is images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "tivial"}, "unknown augmentation 'tivial': did you mean 'trivial'"),
        ({"mixup": -1}, "mixup is -1, but must be a number between 0 and 1000"),
    ],
)
def test_bad_input_is_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BnewError, match=message):
        RECIPE.replace(**changes)


def test_a_run_with_trivial_augment_and_mixup_resumes_as_if_unbroken(tmp_path: Path) -> None:
    recipe = RECIPE.replace(epochs=2, freeze=0.5, augment="trivial", mixup=0.2, label_smoothing=0.1)
    resumed_as_unbroken(recipe, tmp_path)
