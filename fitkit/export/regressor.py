"""A trained network as a program that runs without fitkit: TorchScript or ONNX, and a card that explains
it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fitkit import __version__
from fitkit.errors import FitkitError, InputError
from fitkit.io.atomic import remove_litter, written_whole
from fitkit.io.foreign import foreign_file
from fitkit.io.options import to_plain
from fitkit.models.face_model import FaceModel
from fitkit.models.skinned import SkinnedModel
from fitkit.nets import load_predictor, model_of, read_about
from fitkit.nets.predictor import Prediction, Predictor
from fitkit.observe.face_parts import PARSE, PARTS

log = logging.getLogger("fitkit")
FORMATS = {"torchscript": ".pt", "onnx": ".onnx"}
PEOPLE = 2  # in the example that a program is traced with; with 1 an exporter would keep that number
TOLERANCE = 1e-3  # of the largest value of an output: what the exported program may differ by
# Name -> letters of the shape, unit, meaning. The order is that of the program.
INPUTS = {
    "images": ("[S, V, 3, size, size]", "sRGB, 0 to 1", "V photos of each of S people, cut as `crop` says"),
    "valid": ("[S, V]", "none", "false: that photo is missing; every person has at least one"),
}
OUTPUTS = {
    "identity": ("[S, K_id]", "none", "standard-normal coefficients of the face model"),
    "identity_sigma": ("[S, K_id]", "none", "standard deviations of `identity`"),
    "expression": (
        "[S, V, K_ex]",
        "none",
        "blend-shape weights or Gaussian coefficients, in the order of `expression_names`",
    ),
    "joints": (
        "[S, V, J, 3]",
        "rad",
        "rotation vectors of the face model's joints, in the order of `joint_names`",
    ),
    "rotation": (
        "[S, V, 3, 3]",
        "none",
        "camera_from_head: x_camera = rotation @ x_head + translation; head: x to the subject's left, y "
        "up, z out of the face; camera: x right, y down, z forward",
    ),
    "translation": ("[S, V, 3]", "mm", "of camera_from_head, see `rotation`"),
    "focal": (
        "[S, V]",
        "px of the cut picture",
        "orthographic camera: pixel = focal * x_camera / 1000 mm + principal; perspective: pixel = focal * "
        "x_camera / z_camera + principal; which one: `camera_kind`",
    ),
    "principal": ("[S, V, 2]", "px of the cut picture", "x, y; (0, 0) is the centre of the top-left pixel"),
    "illumination": (
        "[S, V, 9, 3]",
        "shading",
        "spherical harmonics of bands 0 to 2 of the light in the head frame, red, green and blue",
    ),
    "albedo": ("[S, K_al]", "none", "standard-normal coefficients of the face model's albedo"),
    "landmarks": (
        "[S, V, 68, 2]",
        "px of the cut picture",
        "x, y in iBUG order, points 0-16 fixed on the skin",
    ),
    "landmark_sigma": (
        "[S, V, 68]",
        "px of the cut picture",
        "standard deviation of each coordinate of `landmarks`",
    ),
    "depth": ("[S, V, size, size]", "mm", "along the camera's axis, see `focal`; 0 or less: no surface"),
    "suitability": (
        "[S, V, size, size]",
        "none",
        "0 to 1, how far the colours may be compared with other photos",
    ),
    "position_map": (
        "[S, V, 3, H, W]",
        "px of the cut picture",
        "x, y, z of the skin at each texel of the face model's texture map; z of the same scale, behind "
        "the nearest point",
    ),
    "parse": ("[S, V, C, size, size]", "none", "logits of the parts of a face, in the order of `parts`"),
    "points3d": ("[S, V, N, 3]", "mm", "points of the face, in a frame of each photo's own"),
}
CROP_RULE = (
    "square around the box of the 68 landmarks: side = margin * its larger side, centre moved up by `up` * "
    "its height, grey (128) or black, as `fill` says, outside of the photo, resized to size x size px"
)
BY_PERSON = ("identity", "identity_sigma", "albedo")


def _tables(found: Prediction) -> dict[str, Tensor]:
    """The outputs that a prediction has, by name; those that are not by person have a row for each frame."""
    state, marks, depth, maps = found.state, found.landmarks, found.depth, found.position_map
    placed = state or depth
    pose, camera = (None, None) if placed is None else (placed.pose, placed.camera)
    values = {
        "identity": None if state is None else state.identity,
        "identity_sigma": found.identity_sigma,
        "expression": None if state is None else state.expression,
        "joints": None if state is None else state.joints,
        "rotation": None if pose is None else pose.rotation,
        "translation": None if pose is None else pose.translation,
        "focal": None if camera is None else camera.focal,
        "principal": None if camera is None else camera.principal,
        "illumination": state.illumination if found.lit else None,
        "albedo": None if state is None else state.albedo,
        "landmarks": None if marks is None else marks.points,
        "landmark_sigma": None if marks is None else marks.sigma,
        "depth": None if depth is None else depth.depth,
        "suitability": None if depth is None else depth.suitability,
        "position_map": None if maps is None else maps.points,
        "parse": found.parse,
        "points3d": found.points3d,
    }
    return {name: values[name] for name in OUTPUTS if values[name] is not None}


class PaddedRegressor(nn.Module):
    """A network with tensors in and tensors out: those of `OUTPUTS` that it has, in that order; rows of
    missing views are zeros."""

    def __init__(self, network: Predictor):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """images: [S, V, 3, size, size]; valid: [S, V] bool."""
        out = []
        for name, value in _tables(self.network(images, valid, padded=True)).items():
            if name not in BY_PERSON:
                value = value.unflatten(0, images.shape[:2])
                there = valid[(...,) + (None,) * (value.ndim - 2)]
                value = torch.where(there, value, torch.zeros_like(value))
            out.append(value)
        return tuple(out)


def export_regressor(
    weights: str | os.PathLike,
    output: str | os.PathLike,
    format: str = "",
    views: int = 0,
    overwrite: bool = False,
    model: FaceModel | None = None,
) -> Path:
    """Write a network as a program, and its card beside it, see `card_of`. The program is run before it is
    kept.

    Args:
        format: 'torchscript' or 'onnx'; empty = by the suffix of `output`, .pt or .onnx.
        views: photos of a person (V); 0 = the network's named views, or 3 where it takes any photos.
        model: the face model; None loads the one that the weights name.
    Returns:
        the path of the program.
    Raises:
        InputError: weights, format or output that cannot be used; ONNX without its packages.
        FitkitError: torch cannot write the program, or it does not give what the network gives.
    """
    output, weights = Path(output), Path(weights)
    format = format or next((name for name, suffix in FORMATS.items() if suffix == output.suffix.lower()), "")
    card_path = card_of(output)
    _check_request(weights, output, card_path, format, overwrite)
    about = read_about(weights)
    if "state" in about["gives"]:
        model = model_of(about, weights) if model is None else model
    network = load_predictor(weights, model).requires_grad_(False)
    if views < 0:
        raise InputError(f"{output}: views: expected at least 1, got {views}")
    if network.views and views not in (0, len(network.views)):
        raise InputError(
            f"{weights}: views: this network takes its {len(network.views)} named views "
            f"({', '.join(v.name for v in network.views)}), got {views}; leave --views out"
        )
    views = views or len(network.views) or 3
    card = _training_card(weights, about, model)
    images, valid = _example(network, views, PEOPLE)
    program = PaddedRegressor(network).eval()
    with torch.no_grad():
        names = tuple(_tables(network(images, valid, padded=True)))
        values = dict(zip(names, program(images, valid)))
    remove_litter(output.parent)
    with written_whole(card_path) as card_part, written_whole(output) as part, torch.no_grad():
        opset = _write(program, format, images, valid, names, part, output)
        entry = {
            "program": output.name,
            "format": format,
            "opset": opset,
            "checked": _check(program, format, part, network, views, names, output),
        }
        entry |= _explained(weights, network, model, views, images, valid, values, card)
        card_part.write_text(
            json.dumps(card | {"export": entry}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return output


def _check_request(weights: Path, output: Path, card_path: Path, format: str, overwrite: bool) -> None:
    if format not in FORMATS:
        raise InputError(
            f"{output}: expected a name that ends in .pt (TorchScript) or .onnx, or --format torchscript|onnx"
            + (f", got format '{format}'" if format else "")
        )
    if card_path == output or card_path.resolve() in [p.resolve() for p in _cards_of(weights)]:
        raise InputError(f"{output}: its card would be {card_path}, which is taken; choose another name")
    for path in (output, card_path):
        if path.is_dir():
            raise InputError(
                f"{path}: expected the name of a file, there is a folder of this name; choose another name"
            )
        if path.exists() and not overwrite:
            raise InputError(f"{path}: already exists; use --overwrite to replace it, or choose another name")
    if card_path.exists() and _program_of(card_path) is None:
        raise InputError(
            f"{card_path}: is not the card of an exported program, so it is not replaced; choose another name"
        )
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}; make it first")
    missing = (
        [p for p in ("onnx", "onnxscript") if importlib.util.find_spec(p) is None] if format == "onnx" else []
    )
    if missing:
        raise InputError(
            f"{output}: ONNX export needs the package {missing[0]}, which is not installed; pip install "
            "'fitkit[export]', or export TorchScript"
        )


def _example(network: Predictor, views: int, people: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures of noise; of the last person all views but the first are missing."""
    images = torch.rand(
        people, views, 3, network.size, network.size, generator=torch.Generator().manual_seed(seed)
    )
    valid = torch.ones(people, views, dtype=torch.bool)
    valid[-1, 1:] = False
    return images, valid


def _write(
    program: PaddedRegressor,
    format: str,
    images: Tensor,
    valid: Tensor,
    names: tuple[str, ...],
    part: Path,
    output: Path,
) -> int | None:
    """Write the program to `part` -> opset of an ONNX file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about shapes that it keeps as they were traced
            return (_write_torchscript if format == "torchscript" else _write_onnx)(
                program, images, valid, names, part
            )
    except OSError:
        raise
    except Exception as error:  # the exporters of torch raise many kinds
        text = " ".join(str(error).split())[:200]
        raise FitkitError(
            f"{output}: torch {torch.__version__} cannot write this network as {format} "
            f"({type(error).__name__}: {text}); nothing was written, try the other format or a newer torch"
        ) from error


def _write_torchscript(
    program: PaddedRegressor, images: Tensor, valid: Tensor, names: tuple[str, ...], path: Path
) -> None:
    traced = torch.jit.trace(program, (images, valid), check_trace=False)
    with open(path, "wb") as file:  # torch's own file writer turns errors of the disk into another kind
        torch.jit.save(traced, file)


def _write_onnx(
    program: PaddedRegressor, images: Tensor, valid: Tensor, names: tuple[str, ...], path: Path
) -> int:
    import onnx
    from onnxscript import optimizer

    # Given a module instead of its graph, torch.onnx.export tries again with a fixed number of people when a
    # dynamic one fails.
    people = torch.export.Dim("S")
    graph = torch.export.export(
        program, (images, valid), dynamic_shapes={"images": {0: people}, "valid": {0: people}}, strict=False
    )
    made = torch.onnx.export(
        graph,
        (),
        input_names=list(INPUTS),
        output_names=list(names),
        dynamo=True,
        verbose=False,
        optimize=False,
    )
    # Of torch's own optimization only these two: its rewriting took two thirds of the time of a large network
    # (58 of 83 seconds for dfmvr), and onnxruntime optimizes a file when it loads it.
    optimizer.fold_constants(made.model)
    optimizer.remove_unused_nodes(made.model)
    made.save(os.fspath(path), external_data=False)
    file = onnx.load(os.fspath(path))
    for node in file.graph.node:
        del node.metadata_props[:]  # torch writes the folders of this machine there
    del file.graph.value_info[:]  # shapes in between, which name the people as torch does
    for value in (*file.graph.input, *file.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "S"
    onnx.save(file, os.fspath(path))
    return next(s.version for s in file.opset_import if s.domain in ("", "ai.onnx"))


def _check(
    program: PaddedRegressor,
    format: str,
    part: Path,
    network: Predictor,
    views: int,
    names: tuple[str, ...],
    output: Path,
) -> bool:
    """Compare the written program with the network, by the way that fitkit takes, on other pictures of more
    people -> False: there is nothing here that runs it.

    Raises:
        FitkitError: they differ.
    """
    images, valid = _example(network, views, PEOPLE + 1, seed=1)
    got = _run(format, part, images, valid)
    if got is None:
        log.warning(
            "%s: was not compared with the network, which needs the package onnxruntime; pip install "
            "'fitkit[export]'",
            output,
        )
        return False
    expected = _tables(network(images, valid))
    for name, mine in zip(names, got, strict=True):
        truth, there = expected[name].numpy(), valid.numpy()
        own = mine if name in BY_PERSON else mine[there]
        off = float(np.abs(own - truth).max()) / max(float(np.abs(truth).max()), 1e-6)
        if not off < TOLERANCE:
            raise FitkitError(
                f"{output}: the exported program differs from the network in '{name}' by {off:.2g} of its "
                f"size (allowed {TOLERANCE:g}); nothing was written, try the other format"
            )
        if name not in BY_PERSON and mine[~there].any():
            raise FitkitError(
                f"{output}: the exported program has numbers in '{name}' where views are missing, expected "
                "0; nothing was written, try the other format"
            )
    return True


def _run(format: str, path: Path, images: Tensor, valid: Tensor) -> list[np.ndarray] | None:
    """What the written program says; None: there is nothing here that runs it."""
    if format == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [v.numpy() for v in torch.jit.load(os.fspath(path))(images, valid)]
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy(), "valid": valid.numpy()})


# ---- the card ----


def _cards_of(weights: Path) -> tuple[Path, Path]:
    """Where the card of a training may lie: as the training names it, or named after the weights."""
    return weights.with_name("card.json"), weights.with_suffix(".json")


def card_of(program: Path) -> Path:
    """Where the card of a program lies: NAME.json, or where that is the card of another program, as of
    NAME.pt beside NAME.onnx, NAME.onnx.json."""
    card = program.with_suffix(".json")
    other = _program_of(card)
    taken = other not in (None, program.name) and card != program and os.path.exists(program.parent / other)
    return program.with_name(f"{program.name}.json") if taken else card


def _program_of(card: Path) -> str | None:
    """Name of the program that a card describes; None: the file is no card that an export has written."""
    try:
        with foreign_file(card, "not readable") as file:
            export = file.json()["export"]
            # Cards of earlier versions do not name it.
            return str(
                export["program"] if "program" in export else card.with_suffix(FORMATS[export["format"]]).name
            )
    except InputError:
        return None


def _training_card(weights: Path, about: dict[str, Any], model: FaceModel | None) -> dict[str, Any]:
    for path in _cards_of(weights):
        if path.exists():
            with foreign_file(path, "not readable as the card of the weights", "mend or remove it") as file:
                card = file.json()
                if not isinstance(card, dict):
                    raise ValueError("expected a JSON object")
            return card
    return {"net": about["net"], "views": about["views"], **_about_model(model)}


def _about_model(model: FaceModel | None) -> dict[str, Any]:
    if model is None:  # the network needs none
        return {}
    return {"model": {"name": model.name, "licence": model.license, "source": model.source}}


def _explained(
    weights: Path,
    network: Predictor,
    model: FaceModel | None,
    views: int,
    images: Tensor,
    valid: Tensor,
    values: dict[str, Tensor],
    card: dict[str, Any],
) -> dict[str, Any]:
    """What a user of the program needs to know. values: what it says of the example, by name."""

    def table(about, tensors):
        return {
            name: {
                "axes": about[name][0],
                "shape": ["S", *tensor.shape[1:]],
                "type": str(tensor.dtype).removeprefix("torch."),
                "unit": about[name][1],
                "meaning": about[name][2],
            }
            for name, tensor in tensors.items()
        }

    return {
        "fitkit": __version__,
        "torch": torch.__version__,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "people": "any number (S)",
        "views": views,
        "view_names": [v.name for v in network.views],
        "inputs": table(INPUTS, {"images": images, "valid": valid}),
        "outputs": table(OUTPUTS, values),
        "gives": list(network.gives),
        **_about_outputs(network, model, values),
        "missing_views": "their rows are 0",
        "device": "cpu",
        "crop": to_plain(network.crop) | {"size": network.size, "rule": CROP_RULE},
        **_about_model(model),
        "licence": card.get("licence", "see 'model'"),
    }


def _about_outputs(network: Predictor, model: FaceModel | None, values: dict[str, Tensor]) -> dict[str, Any]:
    """What the tables of the outputs refer to."""
    out: dict[str, Any] = {}
    if "focal" in values:
        out["camera_kind"] = network.camera_kind
    if "expression" in values:
        out["expression_names"] = list(model.expression_names)
    if "joints" in values and isinstance(model, SkinnedModel):
        out["joint_names"] = list(model.joint_names)
    if "parse" in values:
        count = values["parse"].shape[2]
        known = {len(PARSE): PARSE, len(PARTS): PARTS}
        out["parts"] = list(known.get(count, map(str, range(count))))
    return out
