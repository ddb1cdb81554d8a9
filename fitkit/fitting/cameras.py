"""What is known about the cameras of a subject before the fit, and what the fit assumes about them from its
start on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fitkit.errors import FitError, InputError
from fitkit.fitting.recipe import CameraOptions
from fitkit.io.subject import View, some
from fitkit.models.face_model import FaceModel
from fitkit.observe.observations import Observations
from fitkit.scene.camera import Camera
from fitkit.scene.state import SceneState, first_views

LARGEST = 1e9  # px or mm, beyond what any camera has
# No photo is taken from nearer; a focal length that says so is of a picture that was cropped.
NEAREST_MM = 270.0
EXIF_ASPECT = 0.005  # log units: a photo with EXIF data is one of a camera, whose pixels are square
NOT_BELIEVED = "the focal length in the EXIF data of {} was not used: {}, so the picture was probably cropped"


@dataclass(frozen=True)
class CameraKnowledge:
    """What the files of a subject say about the cameras of its B views; nothing in it depends on where a fit
    begins."""

    views: tuple[View, ...]
    options: CameraOptions
    scale: Tensor  # [B] px of the crop per px of the photo
    principal: Tensor  # [B, 2] px of the crop
    aspect: Tensor  # [B]

    @classmethod
    def of(cls, views: Sequence[View], observations: Observations, options: CameraOptions) -> CameraKnowledge:
        """
        Raises:
            FitError: a camera with numbers that no camera has; it names the view. InputError: cameras.json
                for orthographic cameras, two photos of one camera in one moment, or positions only some of
                which are in a known unit.
        """
        for view in views:
            _check_camera(view)
        _check_moments(views)
        _check_units(views)
        if options.kind == "orthographic" and any(v.camera is not None for v in views):
            raise InputError(
                "camera.kind=orthographic cannot use cameras.json; leave the file out or use perspective"
            )
        device, scale = observations.images.device, observations.scale
        center = (torch.tensor([v.size for v in views], dtype=torch.float32, device=device) - 1) / 2
        aspect = torch.ones(len(views), device=device)
        for i, view in enumerate(views):
            if view.camera is not None:
                K = view.camera.K
                aspect[i] = float(K[1, 1] / K[0, 0])
                center[i] = torch.tensor([K[0, 2], K[1, 2]], dtype=torch.float32)
        principal = (center - observations.offset) * scale[:, None]
        return cls(tuple(views), options, scale, principal, aspect)

    @cached_property
    def rig(self) -> list[int]:
        """Views whose position is given."""
        return [i for i, v in enumerate(self.views) if v.camera is not None and v.camera.R is not None]

    @cached_property
    def rigs(self) -> list[list[int]]:
        """Of each moment that several cameras of the rig saw, their views."""
        return rigs_of(self.views)

    @cached_property
    def metric(self) -> bool:
        """Whether positions are in mm, as far as there are some."""
        return all(self.views[i].camera.metric for i in self.rig)

    @cached_property
    def baseline(self) -> float:
        """Largest distance between two cameras of the rig at one moment, in the unit of the positions; 0
        without such."""
        apart = [0.0]
        for rig in self.rigs:
            cameras = [self.views[i].camera for i in rig]
            centers = torch.stack(
                [-torch.as_tensor(c.R.T @ c.t.reshape(3), dtype=torch.float64) for c in cameras]
            )
            apart.append(float(torch.cdist(centers, centers).max()))
        return max(apart)

    def prior(self, face_scale: Tensor, distance: Tensor) -> CameraPrior:
        """What to assume where the face has `face_scale` [B] px of the crop per mm.

        An unknown focal length f is that of a camera `distance` [B] mm away, `distance_mm` where that is NaN:
        f = scale [px/mm] * distance. The photos alone hardly tell the two apart.
        """
        options, views, B = self.options, self.views, len(self.views)
        in_photo = face_scale / self.scale
        if options.kind == "orthographic":
            focal = in_photo * Camera.REFERENCE_DEPTH * self.scale
            sigma = torch.full_like(focal, 10.0)  # the scale is free
            share = self._one_camera([v.focal_px for v in views])
            return self._prior(focal, sigma, ("estimated",) * B, False, share, self._notes(in_photo))
        cropped = self._cropped(in_photo)
        exif = [None if bad else v.focal_px for v, bad in zip(views, cropped)]
        share = self._one_camera(exif)
        focal = in_photo * torch.nan_to_num(distance, options.distance_mm)
        sigma = torch.full_like(in_photo, options.focal_sigma)
        if share:
            focal = focal.median().expand(B).clone()
        source = ["estimated"] * B
        for i, view in enumerate(views):
            if view.camera is not None:
                focal[i], sigma[i] = float(view.camera.K[0, 0]), options.known_sigma
                source[i] = "cameras.json"
            elif exif[i]:
                focal[i], sigma[i], source[i] = exif[i], options.exif_sigma, "exif"
        known = [v.camera is not None for v in views]
        one = not any(known) or (all(known) and float(focal.max() - focal.min()) < 1e-3)
        one = one and len({v.camera.name for v in views if v.camera is not None}) < 2
        notes = self._notes(in_photo)
        return self._prior(focal * self.scale, sigma, tuple(source), share and one, share, notes)

    def _one_camera(self, exif: Sequence[float | None]) -> bool:
        """Whether all photos are taken to be of one camera; exif: [B] px, focal lengths that are believed."""
        how = self.options.share_focal
        same = len({v.size for v in self.views}) == 1 and len(set(exif)) == 1
        return how == "yes" or (how == "auto" and same)

    def _prior(
        self,
        focal: Tensor,
        sigma: Tensor,
        source: tuple[str, ...],
        share: bool,
        one_camera: bool,
        notes: tuple[str, ...],
    ) -> CameraPrior:
        groups = torch.zeros(len(self.views), dtype=torch.int64) if share else self._cameras()
        first = torch.zeros(len(self.views), dtype=torch.bool, device=focal.device)
        first[first_views(groups)] = True
        names = tuple(v.name for v in self.views)
        moments = moments_of(self.views)
        off = [
            self.options.principal_sigma if v.camera is None else self.options.known_sigma for v in self.views
        ]
        side = torch.tensor([share * max(v.size) for share, v in zip(off, self.views)]).to(focal)
        options = self.options
        square = {"estimated": options.aspect_sigma, "exif": EXIF_ASPECT, "cameras.json": options.known_sigma}
        return CameraPrior(
            focal,
            sigma,
            groups,
            first,
            self.principal,
            side * self.scale,
            self.aspect,
            torch.tensor([square[s] for s in source]).to(focal),
            self._cameras(),
            names,
            source,
            moments,
            any(v.moment for v in self.views),
            one_camera=one_camera,
            notes=notes,
        )

    def _cameras(self) -> Tensor:
        """[B] int64, views of one camera have the same number; one that states none has its own, as has each
        view where the recipe shares no focal length."""
        share = self.options.share_focal != "no"
        return numbers_of([(v.camera.name if v.camera is not None and share else "") for v in self.views])

    def _nearest(self, in_photo: Tensor) -> Tensor:
        """[B] mm from the face where the camera would have been by the EXIF data; infinite without them."""
        focal = torch.tensor([(v.focal_px or torch.inf) for v in self.views], device=in_photo.device)
        return focal / in_photo

    def _cropped(self, in_photo: Tensor) -> list[bool]:
        """Views whose EXIF data cannot be right."""
        return [
            v.camera is None and float(d) < NEAREST_MM for v, d in zip(self.views, self._nearest(in_photo))
        ]

    def _notes(self, in_photo: Tensor) -> tuple[str, ...]:
        cropped = [v.name for v, bad in zip(self.views, self._cropped(in_photo)) if bad]
        if not cropped:
            return ()
        nearest = 10 * round(float(self._nearest(in_photo).min()) / 10)
        why = f"by it the camera would have been {nearest} mm from the face"
        return (NOT_BELIEVED.format(some(cropped), why),)


@dataclass(frozen=True)
class CameraPrior:
    """What a fit assumes about the cameras of its B views."""

    focal_mean: Tensor  # [B] px of the crop
    focal_sigma: Tensor  # [B] log units
    focal_groups: Tensor  # [B] int64, views with one camera: one focal length, one aspect
    first: Tensor  # [B] bool, one view per camera
    principal_mean: Tensor  # [B, 2] px of the crop
    principal_sigma: Tensor  # [B] px of the crop
    aspect_mean: Tensor  # [B]
    aspect_sigma: Tensor  # [B] log units
    cameras: Tensor  # [B] int64, views of one camera with one principal point
    names: tuple[str, ...]  # of the views
    source: tuple[str, ...]  # per view 'cameras.json', 'exif' or 'estimated'
    moments: Tensor  # [B] int64, views of one moment share the expression
    moments_stated: bool = False  # the subject says which they are; otherwise each view has its own
    one_camera: bool = False  # taken to be so, even where focal lengths are not shared
    pose_groups: Tensor | None = None  # [B] int64, views of a calibrated rig move together
    metric: bool = False  # known camera positions, in a known unit, fix the scale of the head
    unit_mm: float | None = None  # of positions whose unit nobody knows, at the start; None: there are none
    notes: tuple[str, ...] = ()  # what of the given cameras is not used, one line each

    @property
    def aspect_differs(self) -> bool:
        """Whether some photos may be stretched and others not: there are several cameras, and of some nobody
        knows the aspect. What all photos have in common cannot be told from the shape of the face."""
        several = not self.one_camera and len(self.focal_groups.unique()) > 1
        return several and "estimated" in self.source

    def without_exif(
        self, wrong: Sequence[int], state: SceneState, options: CameraOptions, model: FaceModel
    ) -> CameraPrior:
        """The same, but views `wrong` have cameras that are not known, now that their heads are where `state`
        puts them."""
        rows = torch.tensor(wrong, device=self.focal_mean.device)
        depth = state.pose.apply(model.landmark_basis.mean.mean(0).expand(1, 1, 3).to(state.pose.rotation))[
            :, 0, 2
        ]
        usual = (state.camera.focal / depth * options.distance_mm)[rows]
        shared = len(self.focal_groups.unique()) == 1
        names = some([self.names[i] for i in wrong])
        return replace(
            self,
            focal_mean=self.focal_mean.index_copy(
                0, rows, usual.median().expand_as(usual) if shared else usual
            ),
            focal_sigma=self.focal_sigma.index_fill(0, rows, options.focal_sigma),
            aspect_sigma=self.aspect_sigma.index_fill(0, rows, options.aspect_sigma),
            source=tuple("estimated" if i in wrong else s for i, s in enumerate(self.source)),
            notes=(
                *self.notes,
                NOT_BELIEVED.format(names, "the perspective of the landmarks contradicts it"),
            ),
        )


def moments_of(views: Sequence[View]) -> Tensor:
    """[B] int64, the moment of each view; one that states none is a moment of its own."""
    return numbers_of([view.moment for view in views])


def numbers_of(names: Sequence[str]) -> Tensor:
    """[B] int64, 0 without gaps in the order of the first views: one number for each name, and for each view
    without one."""
    keys = [name or i for i, name in enumerate(names)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys])


def rigs_of(views: Sequence[View]) -> list[list[int]]:
    """Views whose camera has a position, by moment, where there are several; all that state no moment are of
    one, since `R` and `t` are relative to a head that keeps its place."""
    rigs: dict[str, list[int]] = {}
    for i, view in enumerate(views):
        if view.camera is not None and view.camera.R is not None:
            rigs.setdefault(view.moment, []).append(i)
    return [rig for rig in rigs.values() if len(rig) > 1]


def expression_owner(moments: Tensor, shared: bool) -> Tensor:
    """[B] int64, views with the same one share an expression: those of a moment or, `shared`, all."""
    return torch.zeros_like(moments) if shared else moments


def _check_moments(views: Sequence[View]) -> None:
    """InputError: two photos of one camera in one moment."""
    taken: dict[tuple[str, str], str] = {}
    for view in views:
        if view.moment and view.camera is not None and view.camera.name:
            other = taken.setdefault((view.moment, view.camera.name), view.name)
            if other != view.name:
                raise InputError(
                    f"views '{other}' and '{view.name}': expected one photo of each camera in a moment, got "
                    f"two of camera '{view.camera.name}' in '{view.moment}'; name their moments apart"
                )


def _check_units(views: Sequence[View]) -> None:
    """InputError: positions in mm beside others whose unit nobody knows."""
    placed = [v for v in views if v.camera is not None and v.camera.R is not None]
    for unknown in (v for v in placed if not v.camera.metric):
        for known in (v for v in placed if v.camera.metric):
            raise InputError(
                f"views '{known.name}' and '{unknown.name}': expected positions of all cameras in mm or all "
                "in one unknown unit, got one in mm and one in an unknown unit; give the same unit for all"
            )


def _check_camera(view: View) -> None:
    """FitError: numbers that no camera has, as of one that was made in Python."""
    camera = view.camera
    known = (
        [view.focal_px or 0.0]
        if camera is None
        else [camera.K]
        if camera.R is None
        else [camera.K, camera.R, camera.t]
    )
    numbers = np.concatenate([np.ravel(np.asarray(n, dtype=np.float64)) for n in known])
    if not (np.abs(numbers) <= LARGEST).all() or (
        camera is not None and min(camera.K[0, 0], camera.K[1, 1]) < 1 / LARGEST
    ):
        raise FitError(
            f"view '{view.name}': its {'focal length from EXIF' if camera is None else 'camera'} cannot be "
            f"used; expected numbers up to {LARGEST:g} and focal lengths above 0, in px and mm, got "
            f"{', '.join(f'{n:.4g}' for n in numbers)}"
        )
