"""Pictures with known parts: trees, folders of fitkit synth, CelebAMask-HQ, guesses; and their changes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers import face_points, write_pts
from layouts import CELEBA_PARTS, celebamask
from PIL import Image

from fitkit.data.augment import roll
from fitkit.data.celebamask import CelebAMask, CelebAMaskOptions
from fitkit.data.guessed_parts import GuessedParts, GuessedPartsOptions
from fitkit.data.parsed_pictures import ParsedPictures, ParsedPicturesOptions, parsed_sample
from fitkit.data.photo_changes import PhotoChanges, change_photos
from fitkit.errors import InputError
from fitkit.models.registry import load_model
from fitkit.observe.face_parts import MIRRORED_PARTS, PARTS, UNKNOWN
from fitkit.observe.labels import Labels
from fitkit.observe.landmarks.types import MIRRORED
from fitkit.synth.folder import write_subjects
from fitkit.synth.recipe import load_synth_recipe
from fitkit.synth.subject import draw_subject, render_subject
from fitkit.train.readers import reader

CLEAN = load_synth_recipe("clean", ["views=1", "size=224", "variation.fill=[2.0,2.2]", "variation.bald=0"])


def part(name):
    return PARTS.index(name)


def tree(root, size=120):
    """One picture whose left half is skin, the rest hair, a corner not known."""
    image = np.zeros((size, size, 3), np.uint8)
    image[:, : size // 2] = 200
    parts = np.full((size, size), part("hair"), np.uint8)
    parts[:, : size // 2] = part("skin")
    parts[:10, :10] = UNKNOWN
    folder = root / "anna"
    folder.mkdir(parents=True)
    Image.fromarray(image).save(folder / "a.png")
    Image.fromarray(parts).save(folder / "a_parts.png")
    write_pts(folder / "a.pts", face_points((60, 60), 40))
    return root


def test_a_tree_of_pictures(tmp_path):
    data = ParsedPictures(tree(tmp_path), ParsedPicturesOptions())
    assert data.ids == ("anna/a",) and len(data) == 1
    seen = data[0].observations
    parse, known = seen.labels.parse[0], seen.labels.parse_valid[0] & seen.mask[0]
    light = seen.images[0, 0] > 0.5
    assert (parse[known & light] == part("skin")).all() and (parse[known & ~light] == part("hair")).all()
    assert known.float().mean() > 0.5 and not seen.labels.parse_valid[0].all()
    assert seen.labels.parts == {"parse", "parse_valid"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.full((120, 120), 17, np.uint8), "expected numbers of parts, 0 to 16 or 255 .* got 17"),
        (
            np.zeros((60, 120), np.uint8),
            r"expected a grey picture of 8 bits, \[120, 120\] .* got uint8 \[60, 120\]",
        ),
        (None, "expected a grey picture of 8 bits.* got no picture"),
    ],
)
def test_wrong_pictures_of_parts_are_named(tmp_path, content, message):
    path = tree(tmp_path) / "anna" / "a_parts.png"
    path.write_bytes(b"no picture") if content is None else Image.fromarray(content).save(path)
    with pytest.raises(InputError, match=f"a_parts.png.*{message}"):
        ParsedPictures(tmp_path, ParsedPicturesOptions())[0]


def test_a_tree_without_parts_is_refused(tmp_path):
    (tree(tmp_path) / "anna" / "a_parts.png").unlink()
    with pytest.raises(InputError, match="no picture with NAME.pts and NAME_parts.png in it"):
        ParsedPictures(tmp_path, ParsedPicturesOptions())
    with pytest.raises(InputError, match="expected at least 8 landmarks"):
        parsed_sample(
            "x", np.zeros((9, 9, 3), np.uint8), np.full((68, 2), np.nan), np.zeros((9, 9), np.uint8), 32
        )


def test_folders_of_synth_for_any_model(tmp_path):
    recipe = load_synth_recipe("default", ["views=1", "size=64"])
    write_subjects(recipe, 1, tmp_path)
    data = ParsedPictures(tmp_path, ParsedPicturesOptions(size=64))
    assert data.ids == ("subject_00000/view0",)
    labels = data[0].observations.labels
    model = load_model("generic")
    truth = render_subject(model, recipe, draw_subject(model, recipe, 0))[0].parts
    there = labels.parse[0][labels.parse_valid[0]]
    large = np.flatnonzero(np.bincount(truth.ravel(), minlength=len(PARTS)) > 40)
    assert set(large) <= set(there.unique().tolist())
    assert reader("parsed") == (ParsedPicturesOptions, ParsedPictures)
    wide, close = (
        ParsedPictures(tmp_path, ParsedPicturesOptions(0, m, 64))[0].observations for m in (3, 1.5)
    )
    spread = [np.ptp(o.landmarks.points[0].numpy(), 0).max() for o in (wide, close)]
    np.testing.assert_allclose(spread, [64 / 3, 64 / 1.5], rtol=0.05)


# ---- CelebAMask-HQ ----


def test_celebamask(tmp_path):
    root = celebamask(tmp_path)
    data = CelebAMask(root, CelebAMaskOptions())
    assert data.ids == ("1", "2001")
    parts = data.parts(2001)
    for name, (ours, (x0, y0, x1, y1)) in CELEBA_PARTS.items():
        assert parts[(y0 + y1) // 2, (x0 + x1) // 2] == part(ours), name
    assert not (data.parts(1) == part("glasses")).any()  # a part without a file is not in the picture
    sample = data[1]
    assert sample.observations.labels.parse.max() < len(PARTS)
    assert (sample.observations.labels.parse == part("left_eye")).any()
    # The subject's left eye lies right in the picture.
    columns = (sample.observations.labels.parse[0] == part("left_eye")).nonzero()[:, 1].float().mean()
    others = (sample.observations.labels.parse[0] == part("right_eye")).nonzero()[:, 1].float().mean()
    assert columns > others


def test_what_is_no_celebamask_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected the folder of CelebAMask-HQ .*HQ-img/ is not there"):
        CelebAMask(tmp_path, CelebAMaskOptions())
    root = celebamask(tmp_path)
    masks = root / "CelebAMask-HQ-mask-anno" / "0"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(masks / "00001_nose.png")
    with pytest.raises(InputError, match=r"00001_nose.png: expected \[64, 64\] as the others, got \[9, 9\]"):
        CelebAMask(root, CelebAMaskOptions()).parts(1)
    (masks / "00001_nose.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="00001_nose.png: not readable as a mask"):
        CelebAMask(root, CelebAMaskOptions()).parts(1)
    for path in masks.glob("00001_*"):
        path.unlink()
    with pytest.raises(InputError, match="no mask of picture 1 in it"):
        CelebAMask(root, CelebAMaskOptions()).parts(1)
    for path in (root / "CelebA-HQ-img").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no picture NUMBER.jpg in it"):
        CelebAMask(root, CelebAMaskOptions())


# ---- guesses ----


def test_guesses_of_a_folder(tmp_path):
    folder = tmp_path / "anna"
    folder.mkdir()
    rendered = [
        render_subject(load_model("generic"), CLEAN, draw_subject(load_model("generic"), CLEAN, 0))[0]
    ] * 3
    for k in range(3):
        cv2.imwrite(str(folder / f"{k}.png"), rendered[k].image[..., ::-1])
        write_pts(folder / f"{k}.pts", rendered[k].given)
    data = GuessedParts(tmp_path, GuessedPartsOptions(most=2, size=96))
    assert data.ids == ("anna/0", "anna/2")
    sample = data[1]
    assert sample.observations.labels.parse_valid.float().mean() < 0.95
    assert {part("skin"), part("nose")} <= set(sample.observations.labels.parse.unique().tolist())


# ---- changes ----


@pytest.fixture
def seen(tmp_path):
    return ParsedPictures(tree(tmp_path), ParsedPicturesOptions())[0].observations


def changed(seen, seed=0, **options):
    return change_photos(seen, PhotoChanges(**options), np.random.default_rng(seed), "x")


def test_a_mirrored_photo_takes_points_and_parts_along(seen):
    parse = seen.labels.parse.clone()
    parse[:, :, 3:9] = part("left_eye")
    seen = replace(seen, labels=replace(seen.labels, parse=parse))
    out = changed(seen, mirror=1.0)
    torch.testing.assert_close(out.images, seen.images.flip(-1), atol=1 / 255, rtol=0)
    mirrored = torch.from_numpy(MIRRORED_PARTS.astype(np.int64))[parse.flip(-1)]
    assert torch.equal(out.labels.parse, mirrored) and (mirrored == part("right_eye")).any()
    expected = seen.landmarks.points[:, MIRRORED.tolist()]
    width = seen.size[1]
    torch.testing.assert_close(out.landmarks.points[..., 0], width - 1 - expected[..., 0])
    torch.testing.assert_close(out.landmarks.points[..., 1], expected[..., 1])


def test_a_turned_photo_keeps_parts_on_their_colours(seen):
    out = roll(seen, torch.tensor([30.0]))
    known = out.labels.parse_valid & out.mask
    bright = out.images[:, 0]
    sure = known & ((bright > 0.7) | (bright < 0.05))
    assert sure.float().mean() > 0.3
    assert (out.labels.parse[sure & (bright > 0.7)] == part("skin")).float().mean() > 0.98
    assert (out.labels.parse[sure & (bright < 0.05)] == part("hair")).float().mean() > 0.98
    assert not torch.equal(out.landmarks.points, seen.landmarks.points)


def test_what_is_laid_over_is_an_occluder(seen):
    out = changed(seen, cover=1.0)
    hidden = out.labels.parse == part("occluder")
    assert hidden.any() and out.labels.parse_valid[hidden].all()
    apart = (out.images - seen.images).abs().amax(1) > 0.2
    assert (hidden | ~seen.mask)[apart].float().mean() > 0.95


def test_bad_photos_keep_their_labels(seen):
    out = changed(seen, degrade=1.0)
    assert torch.equal(out.labels.parse, seen.labels.parse)
    assert torch.equal(out.landmarks.points, seen.landmarks.points)
    assert not torch.equal(out.images, seen.images)


def test_other_labels_do_not_follow(seen):
    assert change_photos(seen, PhotoChanges(), np.random.default_rng(0), "x") is seen
    deep = replace(seen, labels=Labels(depth=torch.ones(1, *seen.size)))
    with pytest.raises(InputError, match="x: photos that are mirrored.* this one has depth; set mirror of"):
        changed(deep, mirror=0.5)
    assert torch.equal(changed(deep, degrade=1.0, cover=1.0).labels.depth, deep.labels.depth)
    bare = replace(seen, labels=None)
    assert changed(bare, mirror=1.0).labels is None
