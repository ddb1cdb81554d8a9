"""What reads the data sets of a training, by kind."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fitkit.data.face_dataset import FaceDataset
from fitkit.io.options import Natural
from fitkit.models.face_model import FaceModel


def reader_options(kind: str) -> type:
    """Dataclass of the options of what reads a kind of data set."""
    return reader(kind)[0]


def reader(kind: str) -> tuple[type, Callable[..., FaceDataset]]:
    """The same, and what makes the data set: (folder or None, options, face model) -> it."""
    if kind == "300wlp":
        from fitkit.data.w300lp import W300LP, W300LPOptions

        return W300LPOptions, W300LP
    if kind == "multipie":
        from fitkit.data.multipie import MultiPie, MultiPieOptions

        return MultiPieOptions, MultiPie
    if kind == "frames":
        from fitkit.data.subject_frames import SubjectFrames, SubjectFramesOptions

        return SubjectFramesOptions, SubjectFrames
    if kind == "300vw":
        from fitkit.data.w300vw import Videos, VideosOptions

        return VideosOptions, Videos
    if kind == "celeba":
        from fitkit.data.celeba import CelebA, CelebAOptions

        return CelebAOptions, CelebA
    if kind == "menpo":
        from fitkit.data.menpo import Menpo, MenpoOptions

        return MenpoOptions, Menpo
    if kind == "fits":
        from fitkit.data.fit_results import FitResults, FitResultsOptions

        return FitResultsOptions, FitResults
    if kind == "parsed":
        from fitkit.data.parsed_pictures import ParsedPictures, ParsedPicturesOptions

        return ParsedPicturesOptions, ParsedPictures
    if kind == "celebamask":
        from fitkit.data.celebamask import CelebAMask, CelebAMaskOptions

        return CelebAMaskOptions, CelebAMask
    if kind == "guessed":
        from fitkit.data.guessed_parts import GuessedParts, GuessedPartsOptions

        return GuessedPartsOptions, GuessedParts
    if kind == "pixel_face":
        from fitkit.data.pixel_face import PixelFace, PixelFaceTrainingOptions

        return PixelFaceTrainingOptions, PixelFace
    return SyntheticOptions, _synthetic


@dataclass(frozen=True)
class SyntheticOptions:
    """Where the entry has a folder, that of `fitkit synth`: count: subjects at most, 0 = all. Otherwise they
    are made in memory: recipe: of `fitkit synth`; overrides: 'key=value' lines laid over it; count: subjects,
    0 = 1000."""

    recipe: str = "default"
    overrides: tuple[str, ...] = ()
    count: Natural = 0


def _synthetic(
    folder: Path | None, options: SyntheticOptions, model: FaceModel, labels: Collection[str]
) -> FaceDataset:
    from fitkit.synth.dataset import SynthDataset, open_folder
    from fitkit.synth.recipe import load_synth_recipe

    if folder is not None:
        return open_folder(folder, model, options.count, labels)
    recipe = load_synth_recipe(options.recipe, options.overrides)
    return SynthDataset(recipe, options.count or 1000, model, labels)
