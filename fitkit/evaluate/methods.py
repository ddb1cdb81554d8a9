"""What makes the predictions of an evaluation: fits, networks, and two that every fit must beat."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from fitkit.data.samples import EvaluationSample
from fitkit.errors import InputError
from fitkit.evaluate.depth_surface import face_of_depth
from fitkit.evaluate.map_surface import face_of_map
from fitkit.evaluate.predictions import (
    Outcome,
    PredictedFace,
    face_of_model,
    names_of,
    outcome_of,
    sizes_of,
    write_face,
    write_fit,
)
from fitkit.fitting.depth_evidence import check_depth
from fitkit.fitting.network_start import check_named_views, on_landmarks, predict_views, shipped_weights
from fitkit.fitting.predict import TrainedNetwork, load_trained, predict_observed
from fitkit.fitting.recipe import FitRecipe
from fitkit.fitting.run import fit_observed
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.io.options import plain, to_plain
from fitkit.io.subject import Subject
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.detectors import detect_landmarks, usable_views
from fitkit.observe.landmarks.types import Landmarks

Kind = Literal["fit", "mean", "landmarks", "regressor"]
# What of a network is measured, the first that it gives unless one is named.
Surface = Literal["", "state", "depth", "position_map"]
SURFACES: tuple[Surface, ...] = ("state", "depth", "position_map")
Poses = Literal["network", "landmarks"]  # where those of predicted heads come from
Photos = Callable[[EvaluationSample, str], tuple[Subject, Landmarks]]


@dataclass(frozen=True)
class Method:
    """What predicts samples. It is sent to other processes, so it holds names and loads what they stand for
    where it is used.

    kind: 'fit': photos -> fit; 'mean': the model's mean face; 'landmarks': only the 68 points of the
    detector; 'regressor': a trained network alone; model: name or path of the face model; recipe: of the
    fits, and where landmarks come from; weights, repeat, pose: of 'regressor', see `predict` of
    fitkit/fitting/predict.py; part: of what the network gives, empty: the first of SURFACES that is there;
    device: torch device of fits and networks.
    """

    kind: Kind
    model: str
    recipe: FitRecipe
    weights: str = ""
    repeat: bool = False
    device: str = "cpu"
    part: Surface = ""
    pose: Poses = "network"

    @property
    def needs_photos(self) -> bool:
        return self.kind != "mean"

    @property
    def model_name(self) -> str:
        return load_model(self.model).name

    def made(self) -> dict[str, Any]:
        """What its predictions depend on, as YAML can hold it."""
        made = {"predictor": self.kind, "model": self.model, "fit": to_plain(self.recipe)}
        if self.kind == "regressor":
            file = Path(self.weights or shipped_weights())
            made |= {"weights": file.name, "sha256": _digest(file), "repeat": self.repeat}
            made |= {"part": self.part} if self.part else {}
            made |= {"pose": self.pose} if self.pose != "network" else {}
        return plain(made)

    def load(self) -> None:
        """Load what is needed, so that what is missing shows before the first sample.

        Raises:
            FitkitError: no such model, or weights that cannot be used, or not with this model, or of a
                network that sees no surface, or does not give the `part`, or that has no named views to
                `repeat` a photo in, or no state to lay onto the landmarks.
        """
        load_model(self.model)
        if self.kind == "fit":
            check_depth(self.recipe)
        if self.kind == "regressor":
            network = _network(self.weights, self.model, self.device)
            gives = network.network.gives
            if not set(SURFACES) & set(gives):
                raise InputError(
                    f"{network.weights}: gives {', '.join(gives)}; an evaluation needs a network that gives "
                    "a state, a depth or a position map"
                )
            if self.part and self.part not in gives:
                raise InputError(
                    f"{network.weights}: gives {', '.join(gives)}; part={self.part} cannot be measured, "
                    "leave part out, or give one of them"
                )
            if self.repeat:
                check_named_views(network.network, network.weights)
            if self.pose != "network" and "state" not in gives:
                raise InputError(
                    f"{network.weights}: gives {', '.join(gives)}; pose={self.pose} needs a network that "
                    "gives a state, leave pose out"
                )

    def predict(self, name: str, photos: tuple[Subject, Landmarks] | None, root: Path) -> Outcome:
        """Write the prediction of one sample but its .json.

        Args:
            name: of its files; photos: with their landmarks; None where none are needed.
        Raises:
            FitkitError: photos that cannot be fitted.
        """
        model = load_model(self.model)
        if photos is None:
            write_face(face_of_model(model, name), root, model)
            return Outcome("ok")
        subject, found = photos
        if self.kind == "landmarks":
            pixels = found.points.double().numpy()
            write_face(
                PredictedFace(name, pixels=pixels, sizes=sizes_of(subject), views=names_of(subject)), root
            )
            return Outcome("ok")
        if self.kind == "fit":
            result = fit_observed(subject, found, model, self.recipe, self.device)
            write_fit(result, root, name)
            return outcome_of(result)
        network = _network(self.weights, self.model, self.device)
        part = self.part or next(p for p in SURFACES if p in network.network.gives)
        if part != "state":
            return self._without_state(part, name, subject, found, network, root)
        result = predict_observed(subject, found, network, repeat=self.repeat, pose=self.pose)
        write_fit(result, root, name)
        outcome = outcome_of(result)
        # By the rules for fits it may be unusable; what is measured here is the network, with all that it
        # predicts.
        return replace(outcome, status="doubtful", error="") if outcome.status == "failed" else outcome

    def _without_state(
        self, part: str, name: str, subject: Subject, found: Landmarks, network: TrainedNetwork, root: Path
    ) -> Outcome:
        """The surface that a network sees, without a face model's coefficients."""
        began = time.perf_counter()
        model = network.model.to(self.device)
        said = predict_views(
            network.network, model, subject, found, self.device, network.weights, self.repeat
        )
        if self.pose == "landmarks":
            said = on_landmarks(said)
        seconds = round(time.perf_counter() - began, 3)
        face = (
            face_of_depth(said, subject, found, name) if part == "depth" else face_of_map(said, subject, name)
        )
        write_face(face, root)
        return Outcome("ok", solve_seconds=seconds)


def _digest(path: Path) -> str:
    with foreign_file(path, "cannot be read", limit=DATA_BYTES) as file:
        return hashlib.sha256(file.bytes()).hexdigest()


@lru_cache(maxsize=1)
def _network(weights: str, model: str, device: str) -> TrainedNetwork:
    return load_trained(weights or None, load_model(model), device)


def load_photos(sample: EvaluationSample, source: str) -> tuple[Subject, Landmarks]:
    """The photos of a sample in which a face was found, and its landmarks. source: as in a fit recipe.

    Raises:
        FitkitError: no photo, no face.
    """
    subject = sample.subject()
    found, _ = detect_landmarks(subject, source)
    subject, found, _ = usable_views(subject, found)
    return subject, found


def decoded(photos: tuple[Subject, Landmarks]) -> tuple[Subject, Landmarks]:
    """The same with pictures and masks in memory, for another process or a stopwatch."""
    subject, found = photos
    views = tuple(v.replace(image=v.image, mask=v.mask) for v in subject.views)
    return Subject(subject.name, views, subject.path, subject.notes), found
