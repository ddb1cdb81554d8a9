"""FaceWarehouse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fitkit.data import facewarehouse
from fitkit.data.samples import EvaluationSample
from fitkit.errors import InputError
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import Protocol, Scored
from fitkit.evaluate.vertex_error import corresponding_distances, read_correspondence
from fitkit.io.options import Range


@dataclass(frozen=True)
class FaceWarehouseOptions:
    # .npz with vertex [N] of FaceWarehouse, triangle [N] and barycentric [N, 3] of the face model; needed to
    # score
    correspondence: str = ""
    identities: tuple[str, ...] = facewarehouse.IDENTITIES  # folders; empty: all
    views: Annotated[int, Range(1, 1000)] = 1  # photos in a prediction


class FaceWarehouse(Protocol):
    """Posed faces against registered meshes of depth cameras.

    Data: FaceWarehouse (Cao et al., TVCG 2014), nine people with 20 expressions.
    Metric: mean vertex distance, mm, after a similarity; a table says where each of its vertices lies on the
    face model.
    Source: MoFA (Tewari et al., ICCV 2017), FML (CVPR 2019), as PGN uses it (`evaluate.vertex_error`).
    """

    options = FaceWarehouseOptions
    units: ClassVar[dict[str, str]] = {"vertex_mean": "mm"}
    dataset = facewarehouse.FACEWAREHOUSE

    def samples(self, folder, options: FaceWarehouseOptions) -> list[EvaluationSample]:
        return facewarehouse.facewarehouse_samples(folder, options.identities, options.views)

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: FaceWarehouseOptions, context: Any
    ) -> Scored:
        if not options.correspondence:
            raise InputError(
                "facewarehouse: options.correspondence is not set; give the .npz that says which point of "
                "the face model each FaceWarehouse vertex is: options.correspondence=FILE, which "
                "'fitkit model correspondence MODEL Tester_1/TrainingPose/pose_0.obj -o FILE' makes"
            )
        prediction.need("posed")
        truth, table = sample.truth(), read_correspondence(options.correspondence)
        table.check(len(prediction.triangles), len(truth.vertices), options.correspondence)
        distances = corresponding_distances(prediction.posed[0], prediction.triangles, truth.vertices, table)
        return Scored({"vertex_mean": float(distances.mean())})


PROTOCOL = FaceWarehouse()
