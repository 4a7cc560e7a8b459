from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from convexport.training import augment
from convexport.training.augment import Augmentation, Draw

FILL = torch.tensor([127.0])


def pictures(count: int = 16) -> torch.Tensor:
    return torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 255


ALL = [
    Augmentation(flip="random"),
    Augmentation(flip="alternating"),
    Augmentation(translate=3),
    Augmentation(translate=3, pad="zero"),
    Augmentation(rotate=15, scale=0.1, shear=0.1, shift=2),
    Augmentation(cutout=4),
]


@pytest.mark.parametrize("augmentation", ALL, ids=str)
def test_a_distortion_depends_on_seed_epoch_and_index_alone(augmentation: Augmentation) -> None:
    images, index = pictures(), torch.arange(16)
    whole = augment.apply(images, index, augmentation, Draw(3, 5, FILL))
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    again = augment.apply(images[shuffled], index[shuffled], augmentation, Draw(3, 5, FILL))
    torch.testing.assert_close(again, whole[shuffled], rtol=0, atol=0)
    assert not torch.equal(whole, images)


@pytest.mark.parametrize("augmentation", [item for item in ALL if item.flip != "alternating"], ids=str)
def test_another_epoch_or_seed_draws_anew(augmentation: Augmentation) -> None:
    images, index = pictures(), torch.arange(16)
    first = augment.apply(images, index, augmentation, Draw(0, 0, FILL))
    assert not torch.equal(first, augment.apply(images, index, augmentation, Draw(0, 1, FILL)))
    assert not torch.equal(first, augment.apply(images, index, augmentation, Draw(1, 0, FILL)))


def test_alternating_flips_mirror_every_picture_every_other_epoch() -> None:
    images, index = pictures(), torch.arange(16)
    epochs = [augment.apply(images, index, Augmentation(flip="alternating"), Draw(0, e, FILL)) for e in range(3)]
    mirrored = images.flip(3)
    for place in range(16):
        seen = {bool(torch.equal(epoch[place], images[place])) for epoch in epochs[:2]}
        assert seen == {True, False}
        assert torch.equal(epochs[0][place], epochs[2][place])
        assert all(
            torch.equal(epoch[place], images[place]) or torch.equal(epoch[place], mirrored[place]) for epoch in epochs
        )


def test_no_augmentation_leaves_every_bit() -> None:
    images = pictures()
    assert torch.equal(augment.apply(images, torch.arange(16), Augmentation(), Draw(0, 0, FILL)), images)


def test_an_affine_distortion_of_nothing_keeps_the_picture() -> None:
    images = pictures()
    found = augment.apply(images, torch.arange(16), Augmentation(rotate=1e-6), Draw(0, 0, FILL))
    torch.testing.assert_close(found, images, rtol=1e-3, atol=0.05)


def test_a_cut_out_square_is_the_mean_pixel_and_no_larger_than_its_side() -> None:
    images = torch.zeros(64, 1, 12, 12)
    found = augment.apply(images, torch.arange(64), Augmentation(cutout=4), Draw(0, 0, FILL))
    areas = (found == 127).sum((1, 2, 3))
    assert int(areas.max()) == 16
    assert int(areas.min()) >= 4


@pytest.mark.parametrize("pad", ["reflect", "zero"])
def test_every_translation_within_the_amount_is_as_likely(pad: str) -> None:
    images = torch.arange(144.0).view(1, 1, 12, 12).expand(5000, 1, 12, 12)
    padded = F.pad(images[:1], (2,) * 4, mode="reflect" if pad == "reflect" else "constant")[0, 0]
    windows = padded.unfold(0, 12, 1).unfold(1, 12, 1).reshape(25, 144)
    found = augment.apply(images, torch.arange(5000), Augmentation(translate=2, pad=pad), Draw(0, 0, FILL))
    counts = (found.view(-1, 1, 144) == windows).all(2).sum(0)
    assert int(counts.sum()) == 5000
    assert 150 < int(counts.min()) <= int(counts.max()) < 250


def middle(image: torch.Tensor) -> list[float]:
    """Where the brightness of an image [1, 1, 41, 41] lies, from its center: [down, right]."""
    place = torch.arange(41.0) - 20
    return [float((image[0, 0].sum(1 - axis) * place).sum() / image.sum()) for axis in (0, 1)]


@pytest.mark.parametrize(
    ("augmentation", "place"),
    [
        (Augmentation(rotate=90), (-8.0, -10.0)),
        (Augmentation(shift=3), (-13.0, 5.0)),
        (Augmentation(scale=0.25), (-8.0, 6.4)),
    ],
    ids=str,
)
def test_an_affine_distortion_moves_a_spot_about_the_center(
    augmentation: Augmentation, place: tuple[float, float]
) -> None:
    image = torch.zeros(1, 1, 41, 41)
    image[0, 0, 9:12, 27:30] = 255  # 10 up and 8 right of the center
    largest = torch.ones(1, 6)
    largest[0, 3] = 0.5
    assert middle(augment._affine(image, augmentation, largest)) == pytest.approx(place, abs=0.15)


def test_draws_are_uniform() -> None:
    draws = augment.uniform(0, 0, torch.arange(20000), 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    torch.testing.assert_close(draws.mean(0), torch.full((4,), 0.5), rtol=0, atol=0.01)
    torch.testing.assert_close(draws.std(0), torch.full((4,), 12**-0.5), rtol=0, atol=0.01)
    assert torch.corrcoef(draws.T).fill_diagonal_(0).abs().max() < 0.03


def test_cutmix_keeps_the_share_it_says() -> None:
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 12, 12).contiguous()
    mixed, partner, kept = augment.cutmix(images, 1.0, seed=0, epoch=0, step=1)
    own = (mixed == images).float().mean((1, 2, 3))
    for place in range(8):
        if int(partner[place]) != place:
            assert float(own[place]) == pytest.approx(kept)
    assert 0 < kept < 1


def test_cutmix_leaves_its_share_of_batches_alone() -> None:
    images = pictures()
    mixed = [augment.cutmix(images, 0.25, seed=0, epoch=0, step=step)[2] < 1 for step in range(400)]
    assert 0.17 < sum(mixed) / 400 < 0.33
