"""Damaged files for every reader: python benchmarks/fuzz.py [--inputs 20000] [--seed 0] [--readers NAME ...]
[--json FILE]

Small valid files are made, changed at random (bytes; numbers, names and lines of texts; parts of JSON, arrays
of archives), and read. A reader may read what is left or refuse it with one of fitkit's errors. Anything else
is counted: a foreign exception, more than SECONDS for one input, a process that died. Readers run in forked
processes (not on Windows) whose memory is limited.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads; forked processes would share its threads

import cv2
import numpy as np
import scipy.io
import scipy.sparse
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import itertools

import helpers
import layouts

from fitkit.errors import FitkitError
from fitkit.io.foreign import foreign_file

SECONDS = 10.0  # for one input
MEMORY = 2 * 2**30  # bytes of address space beyond what the process has when it starts
# Of the usual number of inputs, where one takes long.
SHARE = {"onnx": 0.1, "flame": 0.1, "gnm": 0.1, "ict_packed": 0.2, "regressor": 0.5, "synth": 0.5}


@dataclass(frozen=True)
class Reader:
    """files: those that are changed, by their path in the seed's folder; read: reads the folder."""

    files: tuple[str, ...]
    read: Callable[[Path], Any]


@dataclass
class Result:
    """Of one reader: inputs, those that were read and refused, foreign exceptions by kind and place, the
    first input of each, hangs, deaths of the process, the slowest input in seconds and the most memory in MB
    above that of the start."""

    reader: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    foreign: Counter = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    hangs: int = 0
    deaths: int = 0
    slowest: float = 0.0
    memory: float = 0.0

    @property
    def faults(self) -> int:
        return sum(self.foreign.values()) + self.hangs + self.deaths


# ---- seeds ----


def seeds(folder: Path, names: list[str] | None = None) -> dict[str, Reader]:
    """Write a valid seed for each reader into FOLDER/NAME. names: of those that are wanted, all without
    it."""
    out = {}
    for name, make in SEEDS.items():
        if names is None or name in names:
            (folder / name).mkdir(parents=True)
            out[name] = make(folder / name)
    return out


def _landmarks(folder: Path) -> Reader:
    from fitkit.io.landmark_files import read_landmarks

    points = helpers.face_points((60, 60), 50)
    helpers.write_pts(folder / "a.pts", points)
    np.save(folder / "a.npy", points)
    np.savetxt(folder / "a.txt", points, "%.3f")
    (folder / "a.json").write_text(
        json.dumps({"landmarks": [None, *points[1:].tolist()]}).replace("null", "[null, null]")
    )
    return Reader(
        ("a.pts", "a.npy", "a.txt", "a.json"), lambda f: [read_landmarks(p) for p in sorted(f.iterdir())]
    )


def _subject(folder: Path) -> Reader:
    from fitkit.io.subject import load_subject

    person = layouts.person(views=2, size=96)
    (folder / "masks").mkdir()
    entries = []
    for view, kind in ((0, "png"), (1, "jpg")):
        person.photo(folder / f"view{view}.{kind}", view)
        Image.fromarray(np.full((96, 96), 255, np.uint8)).save(folder / "masks" / f"view{view}.png")
        camera = person.result.state
        entries.append(
            {
                "image": f"view{view}.{kind}",
                "K": camera.camera.matrix()[view].tolist(),
                "R": camera.pose.rotation[view].tolist(),
                "t": camera.pose.translation[view].tolist(),
                "distortion": [0.1, 0, 0, 0],
                "width": 96,
                "height": 96,
            }
        )
    (folder / "cameras.json").write_text(json.dumps({"views": entries}))

    def read(folder):
        for view in load_subject(folder).views:
            _ = view.image, view.mask

    return Reader(
        ("view0.png", "view1.jpg", "view0.pts", "cameras.json", "cameras.json", "masks/view1.png"), read
    )


def _images(folder: Path) -> Reader:
    from fitkit.io.images import open_image

    kinds = [
        k
        for k in ("jpg", "png", "tif", "webp", "bmp", "ppm", "jp2", "avif")
        if Image.registered_extensions().get(f".{k}") in Image.SAVE
    ]
    for kind in kinds:
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[274] = 6
        picture.save(
            folder / f"a.{kind}", **({"exif": exif} if kind in ("jpg", "png", "tif", "webp", "avif") else {})
        )
    cv2.imwrite(str(folder / "float.tif"), np.random.default_rng(0).random((40, 40, 3), np.float32))
    cv2.imwrite(str(folder / "deep.png"), np.random.default_rng(0).integers(0, 4096, (40, 40, 3), np.uint16))
    files = (*(f"a.{k}" for k in kinds), "float.tif", "deep.png")
    return Reader(files, lambda f: [open_image(p)() for p in sorted(f.iterdir())])


def _recipes(
    kind: str, load: str, name: str = "", overrides: tuple[str, ...] = ()
) -> Callable[[Path], Reader]:
    def make(folder: Path) -> Reader:
        from importlib import import_module

        from fitkit.io.resources import recipe_names, recipe_path

        module, _, function = load.partition(":")
        for one in [name] if name else recipe_names(kind):
            shutil.copyfile(recipe_path(kind, one), folder / f"{one}.yaml")
        files = tuple(p.name for p in sorted(folder.iterdir()))
        return Reader(
            files,
            lambda f: [getattr(import_module(module), function)(p, overrides) for p in sorted(f.iterdir())],
        )

    return make


def _overrides(folder: Path) -> Reader:
    from fitkit.fitting.recipe import load_recipe

    (folder / "a.yaml").write_text(
        "seed=3\ncrop.margin=1.5\nstages.shape.free=[pose, identity]\nstages.pose.energies.lmk2d={kernel: "
        "{name: huber}}\n"
    )
    return Reader(
        ("a.yaml",), lambda f: load_recipe("landmarks", (f / "a.yaml").read_text("latin-1").splitlines())
    )


def _model(folder: Path) -> Reader:
    from fitkit.models.io import load_model_file, save_model_file

    save_model_file(helpers.tiny_model(num_identity=3), folder / "m.npz")
    return Reader(("m.npz",), lambda f: load_model_file(f / "m.npz"))


def _pickles(folder: Path) -> Reader:
    from old_pickles import Ch, python2

    wrapped, sparse = Ch(x=np.ones((4, 3))), scipy.sparse.csc_matrix(np.eye(5)[:, :4])
    value = {"a": wrapped, "s": sparse, "f": np.arange(12, dtype=np.uint32).reshape(4, 3), "n": [1, "text"]}
    (folder / "old.pkl").write_bytes(python2(value))
    (folder / "new.pkl").write_bytes(pickle.dumps(value | {"a": wrapped.x}, 5))
    np.save(folder / "a.npy", np.array({"f": value["f"]}, dtype=object), allow_pickle=True)
    np.savez(folder / "a.npz", f=value["f"], s=np.array(sparse, dtype=object))

    def read(folder):
        for path in sorted(folder.iterdir()):
            with foreign_file(path, "not readable") as file:
                file.pickled(tuple(value))

    return Reader(("old.pkl", "new.pkl", "a.npy", "a.npz"), read)


def _flame(folder: Path) -> Reader:
    import model_files_flame

    from fitkit.models.formats.flame import import_flame

    model_files_flame.write_flame(folder)
    return Reader(
        tuple(sorted(p.name for p in folder.iterdir() if p.suffix != ".obj")), lambda f: import_flame(f)
    )


def _gnm(folder: Path) -> Reader:
    import model_files_gnm

    from fitkit.models.formats.gnm import import_gnm

    model_files_gnm.write_gnm(folder)
    return Reader(("gnm_head.npz", "head_sparse_68.txt"), lambda f: import_gnm(f))


def _ict_packed(folder: Path) -> Reader:
    from fitkit.models.formats import ict
    from fitkit.models.registry import load_model

    generic, rng = load_model("generic"), np.random.default_rng(0)
    mean = rng.uniform(-90, 40, (ict.NUM_VERTICES, 3))
    points = generic.landmark_basis.mean.numpy().astype(np.float64)
    for a, b in ict.PAIRS:
        points[b] = points[a] * [-1, 1, 1]
    points[30, 2] = points[:, 2].max() + 5
    mean[list(ict.LANDMARKS)] = points
    ends = [0] + [end for _, end in ict.REGIONS]
    faces = np.concatenate([np.arange(a, b - 2)[:, None] + [0, 1, 2] for a, b in itertools.pairwise(ends)])
    np.savez(
        folder / "ict.npz",
        mean=mean.astype(np.float32),
        identity_basis=np.zeros((1, *mean.shape), np.float16),
        faces=faces.astype(np.int32),
        expression_basis=np.zeros((1, *mean.shape), np.float16),
        expression_names=np.array(["jawOpen"]),
        faces_uv=(faces % 999).astype(np.int32),
        uv=rng.uniform(0, 1, (999, 2)).astype(np.float32),
    )
    return Reader(("ict.npz",), lambda f: ict.import_ict(f / "ict.npz"))


OBJ = (
    "mtllib a.mtl\n"
    + "".join(f"v {x} {y} {x * y}\n" for x in range(4) for y in range(4))
    + "vt 0 0\nvt 1 0\nvt 1 1\n"
    + "".join(f"f {a}/1 {a + 1}/2 {a + 5}/3 {a + 4}/1\n" for a in (1, 2, 3, 5, 6, 7))
    + "f -1/-1 -2/-2 -6/-3\n"
)


def _ict_obj(folder: Path) -> Reader:
    from fitkit.models.formats.ict import read_obj

    (folder / "a.obj").write_text(OBJ)
    (folder / "b.obj.gz").write_bytes(gzip.compress(OBJ.encode()))
    return Reader(("a.obj", "b.obj.gz"), lambda f: [read_obj(f / "a.obj"), read_obj(f / "b.obj.gz")])


def _surrey(folder: Path) -> Reader:
    import model_files_surrey as surrey

    from fitkit.models.formats.surrey import Archive, read_landmarks

    def pca(rows):
        basis = np.ones((rows, 2))
        return surrey.pca(np.ones(rows), basis, np.ones(2), np.arange(6).reshape(2, 3))

    (folder / "pca.bin").write_bytes(pca(18))
    (folder / "shapes.bin").write_bytes(
        np.int64(1).tobytes() + surrey.text("anger") + surrey.matrix(np.ones((18, 1)))
    )
    (folder / "marks.txt").write_text(
        "# a\n[landmark_mappings]\n 9 = 33 # chin\n31 = 114\n\n[other]\n1 = 2\n"
    )

    def read(folder):
        with foreign_file(folder / "pca.bin", "no archive") as file:
            archive = Archive(file.bytes())
            _ = archive.pca(), archive.end()
        with foreign_file(folder / "shapes.bin", "no archive") as file:
            archive = Archive(file.bytes())
            _ = archive.blend_shapes(), archive.end()
        read_landmarks(folder / "marks.txt")

    return Reader(("pca.bin", "shapes.bin", "marks.txt"), read)


def _hdf5(folder: Path) -> Reader:
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        file["shape/model/mean"] = np.arange(12, dtype=np.float32)
        file["shape/representer/cells"] = np.arange(6, dtype=np.int32).reshape(3, 2)
        file["metadata/landmarks/json"] = np.array([b'[{"id": "a", "coordinates": [1, 2, 3]}]'])
        file["text"] = "of variable length"
        file.create_dataset("packed", data=np.zeros(900), chunks=(100,), compression="gzip")

    def read(folder):
        with foreign_file(folder / "a.h5", "no HDF5 file") as file:
            file.hdf5(
                ("shape/model/mean", "shape/representer/cells", "metadata/landmarks/json", "text", "packed")
            )

    return Reader(("a.h5",), read)


def _meshes(folder: Path) -> Reader:
    import trimesh

    from fitkit.io.mesh_files import read_mesh

    model = helpers.tiny_model()
    mesh = trimesh.Trimesh(
        model.mean.numpy()[:40], model.triangles[(model.triangles < 40).all(1)].numpy(), process=False
    )
    (folder / "a.obj").write_text(OBJ)
    for kind in ("ply", "stl", "off", "glb"):
        mesh.export(folder / f"a.{kind}")
    (folder / "t.ply").write_bytes(trimesh.exchange.ply.export_ply(mesh, encoding="ascii"))
    return Reader(
        ("a.obj", "a.ply", "t.ply", "a.glb", "a.stl", "a.off"),
        lambda f: [read_mesh(p) for p in sorted(f.iterdir())],
    )


def _parameters(folder: Path) -> Reader:
    from fitkit.export.parameters import save_parameters
    from fitkit.scene.parameters import load_parameters

    save_parameters(helpers.tiny_result(views=2, size=64), folder / "parameters.npz")
    return Reader(("parameters.npz",), lambda f: load_parameters(f / "parameters.npz"))


def _fit_results(folder: Path) -> Reader:
    from fitkit.data.fit_results import FitResults, FitResultsOptions
    from fitkit.export.parameters import save_parameters

    person = layouts.person(views=2, size=96)
    for view in range(2):
        person.photo(folder / "anna" / f"view{view}.png", view)
    (folder / "anna" / "fitkit").mkdir()
    save_parameters(person.result, folder / "anna/fitkit/parameters.npz")
    (folder / "anna/fitkit/metrics.json").write_text('{"status": "ok"}')
    model = helpers.tiny_model()
    return Reader(
        ("anna/fitkit/parameters.npz", "anna/fitkit/metrics.json"),
        lambda f: FitResults(f, FitResultsOptions(size=32), model)[0],
    )


def _predictions(folder: Path) -> Reader:
    from fitkit.evaluate.predictions import read_outcome, read_prediction, write_fit

    write_fit(helpers.tiny_result(views=2, size=64), folder, "a")
    (folder / "a.json").write_text(json.dumps({"id": "a", "status": "ok", "error": "", "seconds": 1.0}))
    files = ("a.json", "a.npz", "a.npz", "a.npy", "a.obj", "a.parameters.npz")
    return Reader(
        files, lambda f: (read_outcome(f, "a"), (p := read_prediction(f, "a")).parameters and p.parameters())
    )


def _regressor(folder: Path) -> Reader:
    from fitkit.nets import load_predictor, net_kind, save_predictor
    from fitkit.nets.predictor import ViewSlot

    model, kind = helpers.tiny_model(), net_kind("mvfnet")
    save_predictor(
        kind.make(model, (ViewSlot("front"),), kind.options(size=32, width=0.02)),
        "mvfnet",
        folder / "r.safetensors",
    )
    return Reader(("r.safetensors",), lambda f: load_predictor(f / "r.safetensors", model))


def _landmark_network(folder: Path) -> Reader:
    from fitkit.observe.landmarks.builtin import read_network
    from fitkit.observe.landmarks.network import LandmarkNetwork, NetworkOptions
    from fitkit.train.landmarks import save_weights

    save_weights(
        LandmarkNetwork(
            NetworkOptions(size=64, widths=(4, 4, 4, 8, 8), blocks=(1, 1, 1, 1), decoder=(8, 4, 4))
        ),
        folder / "l.safetensors",
    )
    return Reader(("l.safetensors",), lambda f: read_network(f / "l.safetensors"))


def _weights(folder: Path) -> Reader:
    from fitkit.nets import net_kind, start_from
    from fitkit.nets.predictor import ViewSlot
    from fitkit.train.records import read_checkpoint

    model, kind = helpers.tiny_model(), net_kind("mvfnet")
    network = kind.make(model, (ViewSlot("front"),), kind.options(size=32, width=0.02))
    layers = [m for m in network.trunk if hasattr(m, "weight")]
    torch.save(
        {f"features.{i}.{k}": v for i, m in enumerate(layers) for k, v in m.state_dict().items()},
        folder / "v.pth",
    )
    torch.save({"step": 1, "network": {}, "optimizer": {}, "average": {}, "recipe": "a"}, folder / "c.pth")
    earlier = {
        "state_dict": {"network.a": torch.zeros(3)},
        "optimizer_states": [{}],
        "global_step": 1,
        "fitkit": {},
    }
    torch.save(earlier, folder / "d.pth")
    return Reader(
        ("v.pth", "c.pth", "d.pth"),
        lambda f: (
            start_from(network, f / "v.pth", model),
            read_checkpoint(f / "c.pth"),
            read_checkpoint(f / "d.pth"),
        ),
    )


def _mat(folder: Path) -> Reader:
    from fitkit.data.aflw2000 import read_3ddfa_model, read_labels
    from fitkit.data.w300lp import read_lp_labels

    rng = np.random.default_rng(0)
    labels = {
        "Pose_Para": np.ones((1, 7)),
        "Shape_Para": np.zeros((199, 1)),
        "Exp_Para": np.zeros((29, 1)),
        "pt3d_68": rng.uniform(0, 90, (3, 68)),
        "pt2d": rng.uniform(0, 90, (2, 68)),
    }
    scipy.io.savemat(folder / "a.mat", labels)
    scipy.io.savemat(folder / "b.mat", labels, do_compression=True)
    scipy.io.savemat(
        folder / "Model_Shape.mat",
        {
            "mu_shape": np.zeros((300, 1)),
            "w": np.zeros((300, 199)),
            "tri": np.ones((3, 9), np.int32),
            "keypoints": np.ones((1, 68), np.int32),
        },
        do_compression=True,
    )
    scipy.io.savemat(
        folder / "Model_Exp.mat",
        {"mu_exp": np.zeros((300, 1)), "w_exp": np.zeros((300, 29))},
        do_compression=True,
    )
    return Reader(
        ("a.mat", "b.mat", "Model_Shape.mat", "Model_Exp.mat"),
        lambda f: (read_labels(f / "a.mat"), read_lp_labels(f / "b.mat"), read_3ddfa_model(f)),
    )


def _data_set(name: str, module: str, function: str, *files: str) -> Callable[[Path], Reader]:
    def make(folder: Path) -> Reader:
        from importlib import import_module

        getattr(layouts, name)(folder, layouts.person(size=96))
        found = tuple(
            str(p.relative_to(folder)) for pattern in files for p in sorted(folder.glob(pattern))[:1]
        )

        def read(folder):
            for sample in getattr(import_module(f"fitkit.data.{module}"), function)(folder)[:1]:
                sample.subject()
                sample.truth()

        return Reader(found, read)

    return make


def _bench(folder: Path) -> Reader:
    from fitkit.evaluate.bench.truth import load_photo_truths, load_truth, subject_names

    layouts.bench(folder, layouts.person(size=96))
    files = tuple(str(p.relative_to(folder)) for p in sorted(folder.glob("ground_truth/*/*")))

    def read(folder):
        for name in subject_names(folder):
            truth = folder / "ground_truth" / name
            load_photo_truths(truth, load_truth(truth), ["view0"])

    return Reader(files, read)


def _synth(folder: Path) -> Reader:
    from fitkit.evaluate.landmark_accuracy import labelled_pictures
    from fitkit.models.registry import load_model
    from fitkit.synth import folder as synth_folder
    from fitkit.synth.dataset import SynthFolder
    from fitkit.synth.recipe import load_synth_recipe

    synth_folder.write_subjects(
        load_synth_recipe("clean", (), {"model": "generic", "views": 1, "size": 64}), 1, folder
    )
    truth = next(folder.glob("ground_truth/*")).relative_to(folder)
    kinds = {
        "*_normals.png": synth_folder.read_normals,
        "*_parse.png": synth_folder.read_classes,
        "*_depth.png": synth_folder.read_depth,
    }
    pictures = {
        str(p.relative_to(folder)): read
        for pattern, read in kinds.items()
        for p in sorted(folder.glob(f"{truth}/{pattern}"))[:1]
    }
    model = load_model("generic")

    def read(folder):
        SynthFolder(folder, model)[0]
        for name, picture in pictures.items():
            picture(folder / name)
        labelled_pictures(folder)

    texts = ("synth.yaml", f"{truth}/params.json", f"{truth}/cameras.json")
    return Reader(tuple(f for f in (*texts, *texts, *pictures) if (folder / f).exists()), read)


def _shards(folder: Path) -> Reader:
    import cv2

    from fitkit.synth.shards import read_shard

    rng = np.random.default_rng(0)
    parts = [
        cv2.imencode(".jpg", rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))[1].reshape(-1)
        for _ in range(3)
    ]
    np.savez(
        folder / "s.npz",
        jpeg=np.concatenate(parts),
        jpeg_end=np.cumsum([len(p) for p in parts]),
        model=np.array(["a"] * 3),
        seed=np.arange(3),
        size=32,
        landmarks=np.zeros((3, 68, 2), np.float32),
        visible=np.ones((3, 68), bool),
        outline=np.zeros((3, 17, 2), np.float32),
        yaw_pitch_roll=np.zeros((3, 3), np.float32),
    )
    return Reader(("s.npz",), lambda f: read_shard(f / "s.npz"))


def _reports(folder: Path) -> Reader:
    from fitkit.evaluate import compare
    from fitkit.evaluate.bench import planted_faults
    from fitkit.export.regressor import _training_card
    from fitkit.fitting import batch_records
    from fitkit.train.records import CsvLog

    rows = [{"id": i, "status": "ok", "m": 1.5} for i in "abc"]
    (folder / "metrics.json").write_text(
        json.dumps({"rows": rows, "units": {"m": "mm"}, "protocol": "now", "data": "d", "options": {}})
    )
    (folder / "batch.json").write_text(
        json.dumps({"subjects": [{"subject": "a", "status": "ok", "seconds": 1.5}]})
    )
    (folder / "batch.jsonl").write_text(
        '{"subject": "a", "status": "ok", "seconds": 1.5, "time": "2026", "attempt": 1}\n'
    )
    (folder / "batch_records").mkdir()
    (folder / "batch_records" / "a.json").write_text('{"subject": "a", "status": "ok", "seconds": 1.5}')
    (folder / "verdicts.json").write_text(
        json.dumps({"benchmark": "verdicts", "rows": [{"metrics": None, "views": 1}]})
    )
    (folder / "card.json").write_text(json.dumps({"net": "mvfnet", "licence": "x"}))
    (folder / "log.csv").write_text("step,stage,total\n1,a,0.5\n2,a,0.4\n")

    def read(folder):
        one = compare.read_report(folder / "metrics.json")
        compare.compare_text(compare.compare(one, one))
        batch_records.summary(batch_records.read_report(folder))
        batch_records.read_logs(folder)
        batch_records.read_record(folder, "a")
        planted_faults.read_report(folder / "verdicts.json")
        _training_card(folder / "r.safetensors", {}, None)
        log = (folder / "log.csv").read_bytes()
        CsvLog(folder / "log.csv", ("step", "stage", "total"), 1)
        (folder / "log.csv").write_bytes(log)

    return Reader(
        (
            *("metrics.json", "metrics.json", "batch.json", "batch.jsonl", "batch_records/a.json"),
            *("verdicts.json", "card.json", "log.csv"),
        ),
        read,
    )


def _manifests(folder: Path) -> Reader:
    from fitkit.io.manifest import manifest_subject, read_manifest

    for name in ("a", "b"):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((40, 40, 3), 90, np.uint8))
    cv2.imwrite(str(folder / "mask.png"), np.full((40, 40), 255, np.uint8))
    (folder / "cameras.json").write_text(json.dumps({"a": {"K": [[90, 0, 20], [0, 90, 20], [0, 0, 1]]}}))
    (folder / "list.csv").write_text(
        "subject,photo,camera,moment,landmarks,mask\nx/y,a.png,cameras.json,1,,mask.png\nx/y,b.png,,1,,\n"
    )
    (folder / "list.jsonl").write_text('{"subject": 1, "photo": "a.png", "mask": null}\n' * 2)

    def read(folder):
        for name in ("list.csv", "list.jsonl"):
            for rows in read_manifest(folder / name).values():
                manifest_subject(folder / name, rows[:1])

    return Reader(("list.csv", "list.csv", "list.jsonl"), read)


def _tables(folder: Path) -> Reader:
    from fitkit.data.bosphorus import read_lm3
    from fitkit.data.samples import read_points
    from fitkit.evaluate.protocols.aflw2000 import read_indices
    from fitkit.evaluate.vertex_error import read_correspondence
    from fitkit.models.makehuman import read_target

    np.savez(folder / "c.npz", vertex=np.arange(5), triangle=np.arange(5), barycentric=np.full((5, 3), 1 / 3))
    np.save(folder / "i.npy", np.arange(5))
    np.savetxt(folder / "p.txt", np.ones((7, 3)))
    (folder / "p.pp").write_text("".join(f'<point x="{i}" y="1" z="2.5"/>\n' for i in range(7)))
    (folder / "t.target.gz").write_bytes(gzip.compress(b"# target\n0 1 2 3\n5 .1 .2 .3\n"))
    (folder / "l.lm3").write_text("nose tip\n1 2 3\nmouth corner\n4 5 6\n")
    return Reader(
        ("c.npz", "i.npy", "p.txt", "p.pp", "t.target.gz", "l.lm3"),
        lambda f: (
            read_correspondence(f / "c.npz").check(9, 9, "c.npz"),
            read_indices(str(f / "i.npy"), 9),
            read_points(f / "p.txt", 7),
            read_points(f / "p.pp", 7),
            read_target(f / "t.target.gz"),
            read_lm3(f / "l.lm3"),
        ),
    )


def _onnx(folder: Path) -> Reader:
    from observe.landmarks.test_onnx import FACE, Finder, regressor  # messages of ONNX by hand

    from fitkit.observe.landmarks.onnx import OnnxDetector

    (folder / "n.onnx").write_bytes(regressor(FACE, (1, 1, 16, 16)))
    return Reader(("n.onnx",), lambda f: OnnxDetector(f / "n.onnx", finder=Finder()))


SEEDS: dict[str, Callable[[Path], Reader]] = {
    "landmarks": _landmarks,
    "subject": _subject,
    "images": _images,
    "yaml_fit": _recipes("fit", "fitkit.fitting.recipe:load_recipe"),
    "yaml_regressor": _recipes("train", "fitkit.train.regressor_recipe:load_regressor_training", "mvfnet"),
    "yaml_landmarks": _recipes(
        "train", "fitkit.train.landmark_recipe:load_landmark_training", "landmarks", ("frames.folder=x",)
    ),
    "yaml_synth": _recipes("synth", "fitkit.synth.recipe:load_synth_recipe"),
    "yaml_evaluate": _recipes("evaluate", "fitkit.evaluate.recipe:load_evaluate_recipe"),
    "yaml_bench": _recipes("bench", "fitkit.evaluate.bench.ablation:load_ablation", "ablation"),
    "yaml_trainings": _recipes("bench", "fitkit.train.ablation:load_training_ablation", "pgn-losses"),
    "overrides": _overrides,
    "model": _model,
    "pickles": _pickles,
    "flame": _flame,
    "gnm": _gnm,
    "ict_packed": _ict_packed,
    "ict_obj": _ict_obj,
    "surrey": _surrey,
    "hdf5": _hdf5,
    "meshes": _meshes,
    "parameters": _parameters,
    "fit_results": _fit_results,
    "predictions": _predictions,
    "regressor": _regressor,
    "landmark_network": _landmark_network,
    "weights": _weights,
    "mat": _mat,
    "now": _data_set("now", "now", "now_samples", "*.txt", "scans/*/*.obj", "scans_lmks_onlypp/*/*.pp"),
    "micc": _data_set("micc", "micc", "micc_samples", "*/*.obj", "*/*.txt"),
    "facescape_wild": _data_set(
        "facescape_wild",
        "facescape",
        "wild_samples",
        "wild_gt_mesh/*.obj",
        "predef/*scales*",
        "predef/*rot*",
        "predef/*cent*",
    ),
    "facescape_lab": _data_set(
        "facescape_lab",
        "facescape",
        "lab_samples",
        "lab_gt_mesh/*.obj",
        "lab_cam/*",
        "lab_cam/*",
        "predef/*rot*",
        "predef/*cent*",
    ),
    "pixel_face": _data_set(
        "pixel_face", "pixel_face", "pixel_face_samples", "**/*.obj", "**/*.ply", "**/*.txt", "**/*.npy"
    ),
    "bosphorus": _data_set("bosphorus", "bosphorus", "bosphorus_samples", "*/*.bnt", "*/*.lm3"),
    "bu3dfe": _data_set("bu3dfe", "bu3dfe", "bu3dfe_samples", "*/*.wrl", "*/*.bnd"),
    "florence": _data_set(
        "florence_renders", "florence_renders", "florence_render_samples", "**/*.obj", "**/*.txt", "**/*.npy"
    ),
    "aflw2000": _data_set("aflw2000", "aflw2000", "aflw2000_samples", "*.mat"),
    "facewarehouse": _data_set("facewarehouse", "facewarehouse", "facewarehouse_samples", "**/*.obj"),
    "bench": _bench,
    "synth": _synth,
    "shards": _shards,
    "manifests": _manifests,
    "reports": _reports,
    "tables": _tables,
    "onnx": _onnx,
}


# ---- changes ----

NUMBERS = (
    "0",
    "-1",
    "1e308",
    "-1e308",
    "nan",
    "inf",
    "1e-320",
    "9" * 19,
    "9" * 400,
    "-9" + "9" * 20,
    "0x_",
    "2024-13-45",
    "1e999",
    "0.5",
    "65536",
    "4294967295",
    "true",
    "null",
    '""',
    "[]",
    "{}",
    "²",
    "1_0",
    "",
)
VALUES = (
    None,
    True,
    "",
    "x",
    "x" * 30_000,
    [],
    {},
    [[]],
    {"a": 1},
    0,
    -1,
    10**9,
    10**19,
    10**45,
    1e308,
    -1e300,
    1e-300,
    float("nan"),
    float("inf"),
    "../../x",
    "/etc/passwd",
    [1, [2]],
    "\0",
)


def mutate(data: bytes, suffix: str, rng: np.random.Generator) -> bytes:
    """The content of a file, changed in one to three places, in the ways that suit its format."""
    if suffix == ".gz" and rng.random() < 0.5:
        return gzip.compress(mutate(gzip.decompress(data), ".txt", rng), 1)
    structured = {
        ".json": _change_json,
        ".npz": _change_npz,
        ".npy": _change_npy,
        ".safetensors": _change_safetensors,
        ".pth": _change_torch,
        ".mat": _change_mat,
        ".glb": _change_glb,
    }.get(suffix)
    if structured is not None and rng.random() < 0.6:
        with suppress(
            ValueError, TypeError, OverflowError, NotImplementedError
        ):  # what the format cannot hold
            return structured(data, rng)
    text = suffix in (
        ".json",
        ".yaml",
        ".txt",
        ".pts",
        ".obj",
        ".off",
        ".csv",
        ".pp",
        ".wrl",
        ".bnd",
        ".lm3",
    ) or (suffix == ".ply" and rng.random() < 0.5)
    for _ in range(rng.integers(1, 4)):
        data = (_change_text if text and rng.random() < 0.75 else _change_bytes)(data, rng)
    return data


def _place(length: int, rng: np.random.Generator) -> int:
    return int(
        rng.integers(0, max(1, length)) if rng.random() < 0.6 else rng.integers(0, max(1, min(length, 200)))
    )  # headers matter


def _change_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    at, size = _place(len(data), rng), int(rng.integers(1, 17))
    number = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40][rng.integers(10)]
    return [
        lambda: data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))] if data else []) + data[at + 1 :],
        lambda: data[:at] + rng.bytes(1) + data[at + 1 :],
        lambda: data[:at],
        lambda: data[:at] + data[at + size :],
        lambda: data[:at] + data[at : at + size] * 3 + data[at + size :],
        lambda: data[:at] + rng.bytes(size) + data[at + size :],
        lambda: (
            data[:at]
            + number.to_bytes(8, "little")[: (2, 4, 8)[rng.integers(3)]]
            + data[at + (2, 4, 8)[rng.integers(3)] :]
        ),
        lambda: data[:at] + bytes(size) + data[at + size :],
    ][rng.integers(8)]()


def _change_text(data: bytes, rng: np.random.Generator) -> bytes:
    text = data.decode("latin-1")
    numbers = list(re.finditer(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text))
    words = list(re.finditer(r"[A-Za-z_]\w*", text))
    way = rng.integers(6)
    if way <= 2 and numbers:
        match = numbers[rng.integers(len(numbers))]
        return (text[: match.start()] + NUMBERS[rng.integers(len(NUMBERS))] + text[match.end() :]).encode(
            "utf-8"
        )
    if way == 3 and words:
        match = words[rng.integers(len(words))]
        other = (
            words[rng.integers(len(words))].group(),
            "",
            "x" * 300,
            "é",
            "!!int x",
            "*a",
            "&a [*a]",
            "!!python/name:os.system",
        )[rng.integers(8)]
        return (text[: match.start()] + other + text[match.end() :]).encode("utf-8")
    if way == 4:
        at = _place(len(text), rng)
        return (
            text[:at]
            + (
                "[" * 3000,
                "{" * 90,
                " ",
                "\n",
                "\t",
                ": ",
                ",",
                "\0",
                "#",
                '"',
                "- ",
                "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
            )[rng.integers(12)]
            + text[at:]
        ).encode("utf-8")
    lines = text.split("\n")
    at = int(rng.integers(len(lines)))
    lines[at : at + 1] = [[], [lines[at]] * 3, [lines[at][: len(lines[at]) // 2]]][rng.integers(3)]
    return "\n".join(lines).encode("latin-1")


def _change_json(data: bytes, rng: np.random.Generator) -> bytes:
    return json.dumps(_changed_value(json.loads(data), rng)).encode()


def _changed_value(value: Any, rng: np.random.Generator) -> Any:
    """A value of JSON with one part replaced, removed or repeated."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return VALUES[rng.integers(len(VALUES))]
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, out = keys[rng.integers(len(keys))], value.copy()
    if rng.random() < 0.2:
        if isinstance(out, list) and rng.random() < 0.5:
            return [*out, out[key]]
        del out[key]
        return out
    out[key] = _changed_value(value[key], rng)
    return out


def _changed_array(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flat = array.copy()
    if flat.size and flat.dtype.kind in "iuf":
        with np.errstate(all="ignore"):
            flat.reshape(-1)[rng.integers(flat.size)] = np.array(
                [0, -1, 1e9, 1e308, np.nan, -np.inf, 1e30][rng.integers(7)]
            ).astype(flat.dtype)
    return [
        lambda: flat,
        lambda: flat,
        lambda: array[:0] if array.ndim else array,
        lambda: array[..., :1] if array.ndim else array,
        lambda: array.reshape(-1),
        lambda: np.array(3),
        lambda: np.array("text"),
        lambda: np.array([b"bytes"]),
        lambda: array.astype(str) if array.size < 5000 else array[:0],
        lambda: array.astype(array.dtype.newbyteorder(">")) if array.dtype.kind in "iuf" else array,
        lambda: array[None],
        lambda: np.zeros(array.shape, bool),
        lambda: array.astype(np.complex64) if array.dtype.kind in "iuf" else array,
        lambda: np.concatenate([array, array]) if array.ndim else array,
        lambda: np.zeros(array.shape, [("a", "f4")]),
        lambda: np.zeros(array.shape, "M8[s]"),
    ][rng.integers(16)]()


def _npy(array: np.ndarray, rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    data = file.getvalue()
    if rng.random() < 0.2:  # another header before the same numbers
        shape = ["(9999999999999, 9)", "(-1,)", "('a',)", "(10**9,)", "()", "(2, 3, 4", "(1,) * 9"][
            rng.integers(7)
        ]
        end = data.index(b"\n")
        data = re.sub(rb"\([\d, ]*\)", shape.encode(), data[:end])[:end].ljust(end) + data[end:]
    return data


def _change_npy(data: bytes, rng: np.random.Generator) -> bytes:
    return _npy(_changed_array(np.load(io.BytesIO(data)), rng), rng)


def _change_npz(data: bytes, rng: np.random.Generator) -> bytes:
    import zipfile

    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        names = old.namelist()
        chosen, way = names[rng.integers(len(names))], rng.integers(8)
        for name in names:
            content = old.read(name)
            if name == chosen:
                if way == 0:
                    continue
                content = _change_bytes(content, rng) if way == 1 else _change_npy(content, rng)
                name = name.removesuffix(".npy") if way == 2 else name
            new.writestr(name, content)
        if way == 3:
            new.writestr("unknown.npy", bytes(2**27))
    packed = file.getvalue()
    return _change_bytes(packed[-300:], rng).join([packed[:-300], b""]) if way == 4 else packed


def _change_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    about = head["__metadata__"]
    if rng.random() < 0.6:
        key = sorted(about)[-1]  # the longest is JSON itself
        about[key] = (
            json.dumps(_changed_value(json.loads(about[key]), rng)) if about[key].startswith("{") else "x"
        )
    else:
        head = _changed_value(head, rng)
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _change_torch(data: bytes, rng: np.random.Generator) -> bytes:
    content, file = torch.load(io.BytesIO(data), weights_only=True), io.BytesIO()
    key = list(content)[rng.integers(len(content))]
    content[[key, 3, None, (1,)][rng.integers(4)]] = [
        torch.zeros(2),
        torch.zeros(1).expand(10**9),
        3,
        None,
        "x",
        {},
        [[]],
        torch.zeros(2, dtype=torch.int64),
    ][rng.integers(8)]
    torch.save([content, content, list(content), 3.0, torch.zeros(3)][rng.integers(5)], file)
    return file.getvalue()


def _change_mat(data: bytes, rng: np.random.Generator) -> bytes:
    content = {k: v for k, v in scipy.io.loadmat(io.BytesIO(data)).items() if not k.startswith("__")}
    key, file = list(content)[rng.integers(len(content))], io.BytesIO()
    content[key] = [
        np.array(["text"]),
        np.array([[{"a": 1}]], object),
        _changed_array(np.abs(content[key].astype(np.float64)), rng),
        np.zeros((0, 0)),
        content[key][:1],
        {"a": {"b": 1}},
    ][rng.integers(6)]
    if rng.random() < 0.1:
        del content[key]
    scipy.io.savemat(file, content, do_compression=bool(rng.integers(2)))
    return file.getvalue()


def _change_glb(data: bytes, rng: np.random.Generator) -> bytes:
    length = int.from_bytes(data[12:16], "little")
    text = json.dumps(_changed_value(json.loads(data[20 : 20 + length]), rng)).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    return (
        data[:8]
        + (20 + len(text) + len(rest)).to_bytes(4, "little")
        + len(text).to_bytes(4, "little")
        + data[16:20]
        + text
        + rest
    )


# ---- running ----


class _Late(BaseException):
    """One input took too long."""


def run(
    readers: dict[str, Reader],
    folder: Path,
    inputs: int,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """`inputs` inputs in all, shared among the readers."""
    shares = {name: SHARE.get(name, 1.0) for name in readers}
    out = []
    for name, reader in readers.items():
        reader.read(folder / name)  # what cannot be read unchanged would hide everything
        count = max(1, round(inputs * shares[name] / sum(shares.values())))
        result, done = Result(name, count), 0
        whole = {folder / name / file: (folder / name / file).read_bytes() for file in reader.files}
        while done < count:
            done = _forked(reader, folder / name, result, seed, done)
            for path, data in whole.items():  # a process that died left one changed
                path.write_bytes(data)
        tell(
            f"{name}: {result.inputs} inputs, {result.faults} faults, slowest {result.slowest:.1f} s, "
            f"{result.memory:.0f} MB"
        )
        out.append(result)
    return out


def _forked(reader: Reader, folder: Path, result: Result, seed: int, start: int) -> int:
    """Inputs from `start` on in a process of their own -> the first that is still to do."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_work, args=(reader, folder, result.reader, seed, start, result.inputs, theirs)
    )
    process.start()
    theirs.close()
    at = start
    try:
        while at < result.inputs:
            if not ours.poll(3 * SECONDS):
                result.hangs += 1
                break
            kind, place, seconds, memory = ours.recv()
            at += 1
            result.slowest, result.memory = max(result.slowest, seconds), max(result.memory, memory)
            if kind == "late":
                result.hangs += 1
            elif kind == "foreign":
                result.foreign[place] += 1
                result.first.setdefault(place, at - 1)
            else:
                setattr(result, kind, getattr(result, kind) + 1)
        else:
            return at
    except EOFError:
        process.join()
        result.deaths += 1
    finally:
        process.kill()
        process.join()
    return at + 1  # the input that ended it


def _work(reader: Reader, folder: Path, name: str, seed: int, start: int, end: int, pipe) -> None:
    faulthandler.disable()
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        if os.path.exists("/proc/self/statm")
        else 2**32
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def late(*_):
        raise _Late

    signal.signal(signal.SIGALRM, late)
    for i in range(start, end):
        kind, place, began = "read", "", time.perf_counter()
        with changed(reader, folder, name, seed, i):
            try:
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
                reader.read(folder)
            except FitkitError as error:
                kind = "refused" if "\n" not in str(error) and len(str(error)) < 3000 else "foreign"
                place = "message of several lines, or very long"
            except _Late:
                kind = "late"
            except BaseException as error:  # noqa: BLE001 - this is what we look for
                frames = [
                    f
                    for f in traceback.extract_tb(error.__traceback__)
                    if "fitkit" in f.filename and "fuzz" not in f.filename
                ]
                kind, place = (
                    "foreign",
                    f"{type(error).__name__} {Path(frames[-1].filename).name}:{frames[-1].lineno}"
                    if frames
                    else repr(error),
                )
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        pipe.send((kind, place, time.perf_counter() - began, grown))


class changed:  # reads as a verb
    """One file of a seed, changed while the block runs: input `index` of a run with this seed."""

    def __init__(self, reader: Reader, folder: Path, name: str, seed: int, index: int):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
        self.path = folder / reader.files[rng.integers(len(reader.files))]
        self.old = self.path.read_bytes()
        self.new = mutate(self.old, self.path.suffix.lower(), rng)

    def __enter__(self) -> Path:
        self.path.write_bytes(self.new)
        return self.path

    def __exit__(self, *_) -> None:
        self.path.write_bytes(self.old)


def table(results: list[Result]) -> str:
    """Lines of a Markdown table."""
    lines = [
        "| reader | inputs | read | refused | foreign exceptions | hangs | deaths | slowest s | memory MB |",
        "|---|" + "---:|" * 8,
    ]
    for r in results:
        lines.append(
            f"| {r.reader} | {r.inputs} | {r.read} | {r.refused} | {sum(r.foreign.values())} | {r.hangs} | "
            f"{r.deaths} | {r.slowest:.1f} | {r.memory:.0f} |"
        )
    total = [
        sum(v)
        for v in zip(
            *((r.inputs, r.read, r.refused, sum(r.foreign.values()), r.hangs, r.deaths) for r in results)
        )
    ]
    return "\n".join(
        [
            *lines,
            "| all | "
            + " | ".join(map(str, total))
            + f" | {max(r.slowest for r in results):.1f} | {max(r.memory for r in results):.0f} |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", choices=sorted(SEEDS), help="default: all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        results = run(
            seeds(Path(place), options.readers),
            Path(place),
            options.inputs,
            options.seed,
            lambda line: print(line, file=sys.stderr, flush=True),
        )
    print(table(results))
    for r in results:
        for place, count in r.foreign.most_common():
            print(f"{r.reader}: {count} x {place}, first input {r.first[place]}")
    if options.json:
        options.json.write_text(
            json.dumps(
                {
                    "benchmark": "fuzz",
                    "seed": options.seed,
                    "seconds": round(time.perf_counter() - began),
                    "rows": [vars(r) for r in results],
                },
                indent=1,
            )
            + "\n",
            encoding="utf-8",
        )
    sys.exit(1 if any(r.faults for r in results) else 0)


if __name__ == "__main__":
    main()
