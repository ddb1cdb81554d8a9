"""A trained network as a program that runs without fitkit: TorchScript or ONNX, and a card that explains it."""
from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fitkit import __version__
from fitkit.errors import FitkitError, InputError
from fitkit.io.options import to_plain
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, read_about
from fitkit.nets.predictor import StatePredictor

FORMATS = {"torchscript": ".pt", "onnx": ".onnx"}
PEOPLE = {"torchscript": 2, "onnx": 1}  # in the example that a program is traced with; TorchScript keeps any number
TOLERANCE = 1e-3  # of the largest value of an output: what the exported program may differ by
INPUTS = {"images": "[S, V, 3, size, size] float32, sRGB in 0 to 1, V photos of each of S people, cut as `crop` says",
          "valid": "[S, V] bool, False: that photo is missing; every person has at least one"}
OUTPUTS = {
    "identity": "[S, K_id] standard-normal coefficients of the face model",
    "identity_sigma": "[S, K_id] their standard deviations",
    "expression": "[S, V, K_ex] blend-shape weights, 0 to 1, in the order of `expression_names`",
    "rotation": "[S, V, 3, 3] x_camera = rotation @ x_head + translation; head: x to the subject's left, y up, z out of the face; "
                "camera: x right, y down, z forward",
    "translation": "[S, V, 3] mm",
    "focal": "[S, V] px of the cut picture; of an orthographic camera pixel = focal * x_camera / 1000 mm + principal",
    "principal": "[S, V, 2] px (x, y); pixel (0, 0) is the centre of the top-left pixel",
    "landmarks": "[S, V, 68, 2] px of the cut picture, iBUG order, points 0-16 fixed on the skin",
    "landmark_sigma": "[S, V, 68] px, standard deviation of each coordinate",
}


class PaddedRegressor(nn.Module):
    """A network with tensors in and tensors out: `tensors` of its prediction, rows of missing views zero."""

    def __init__(self, network: StatePredictor, names: tuple[str, ...]):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, images: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        found = self.network.predict_padded(images, valid)
        state = found.state
        values = {"identity": state.identity, "identity_sigma": found.identity_sigma, "expression": state.expression,
                  "rotation": state.pose.rotation, "translation": state.pose.translation, "focal": state.camera.focal,
                  "principal": state.camera.principal}
        if found.landmarks is not None:
            values |= {"landmarks": found.landmarks.points, "landmark_sigma": found.landmarks.sigma}
        out = []
        for name in self.names:
            value = values[name]
            if not name.startswith("identity"):
                value = value.unflatten(0, images.shape[:2])
                there = valid[(..., *[None] * (value.ndim - 2))]
                value = torch.where(there, value, torch.zeros_like(value))
            out.append(value)
        return tuple(out)


def export_regressor(weights: str | os.PathLike, output: str | os.PathLike, format: str = "", views: int = 0, overwrite: bool = False,
                     model: FaceModel | None = None) -> Path:
    """Write a network as a program, and its card beside it (same name, .json). The program is run before it is kept.

    Args:
        format: 'torchscript' or 'onnx'; empty = by the suffix of `output`, .pt or .onnx.
        views: photos of a person (V), fixed in an ONNX file; 0 = the network's named views, or 3 where it takes any photos.
        model: the face model; None loads the one that the weights name.
    Returns:
        the path of the program.
    Raises:
        InputError: weights, format or output that cannot be used; ONNX without its packages.
        FitkitError: the program does not give what the network gives.
    """
    output, weights = Path(output), Path(weights)
    format = format or next((name for name, suffix in FORMATS.items() if suffix == output.suffix.lower()), "")
    if format not in FORMATS:
        raise InputError(f"{output}: expected a name that ends in .pt (TorchScript) or .onnx, or --format torchscript|onnx"
                         + (f", got format '{format}'" if format else ""))
    card_path = output.with_suffix(".json")
    if card_path == output or card_path.resolve() == weights.with_suffix(".json").resolve():
        raise InputError(f"{output}: its card would be {card_path}, which is taken; choose another name")
    for path in (output, card_path):
        if path.exists() and not overwrite:
            raise InputError(f"{path}: already exists; use --overwrite to replace it, or choose another name")
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}; make it first")
    if format == "onnx":
        missing = [p for p in ("onnx", "onnxscript") if importlib.util.find_spec(p) is None]
        if missing:
            raise InputError(f"ONNX export needs the package {missing[0]}, which is not installed; pip install 'fitkit[export]', "
                             "or export TorchScript")
    about = read_about(weights)
    model = load_model(about["model"]) if model is None else model
    network = load_predictor(weights, model).requires_grad_(False)
    if network.views and views not in (0, len(network.views)):
        raise InputError(f"{weights}: views: this network takes its {len(network.views)} named views "
                         f"({', '.join(v.name for v in network.views)}), got {views}")
    if views < 0:
        raise InputError(f"views: expected at least 1, got {views}")
    views = views or len(network.views) or 3
    images, valid = _example(network, views, PEOPLE[format])
    names = _names(network, images, valid)
    program = PaddedRegressor(network, names).eval()
    part, card_part = output.with_name(output.name + ".part"), card_path.with_name(card_path.name + ".part")
    try:
        with torch.no_grad():
            (_write_torchscript if format == "torchscript" else _write_onnx)(program, images, valid, names, part)
            _check(program, format, part, network, views)
        card_part.write_text(json.dumps(_card(weights, network, model, format, views, names, about), indent=1, ensure_ascii=False) + "\n",
                             encoding="utf-8")
        os.replace(part, output)
        os.replace(card_part, card_path)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
        card_part.unlink(missing_ok=True)
    return output


def _example(network: StatePredictor, views: int, people: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures of noise, the last view of the last person missing where there are two or more."""
    images = torch.rand(people, views, 3, network.size, network.size, generator=torch.Generator().manual_seed(seed))
    valid = torch.ones(people, views, dtype=torch.bool)
    valid[-1, 1:] = False
    return images, valid


@torch.no_grad()
def _names(network: StatePredictor, images: Tensor, valid: Tensor) -> tuple[str, ...]:
    found = network.predict_padded(images, valid)
    lacking = {"identity_sigma"} if found.identity_sigma is None else set()
    lacking |= {"landmarks", "landmark_sigma"} if found.landmarks is None else set()
    return tuple(name for name in OUTPUTS if name not in lacking)


def _write_torchscript(program: PaddedRegressor, images: Tensor, valid: Tensor, names: tuple[str, ...], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about shapes that it keeps as they were traced
        traced = torch.jit.trace(program, (images, valid), check_trace=False)
    traced.save(os.fspath(path))


def _write_onnx(program: PaddedRegressor, images: Tensor, valid: Tensor, names: tuple[str, ...], path: Path) -> None:
    # torch's exporter keeps the number of people as it is traced, so an ONNX file takes one at a time.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, (images, valid), os.fspath(path), input_names=list(INPUTS), output_names=list(names), dynamo=True,
                          external_data=False, verbose=False)


def _check(program: PaddedRegressor, format: str, path: Path, network: StatePredictor, views: int) -> None:
    """Compare the written program with the network itself, by the way that fitkit takes, on other pictures (and more people)."""
    images, valid = _example(network, views, 3 if format == "torchscript" else 1, seed=1)
    expected = [v.numpy() for v in program(images, valid)]
    plain = network.predict(images, valid).state
    own = {"identity": plain.identity, "expression": plain.expression, "rotation": plain.pose.rotation}
    if format == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            got = [v.numpy() for v in torch.jit.load(os.fspath(path))(images, valid)]
    elif importlib.util.find_spec("onnxruntime") is None:
        return
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        got = session.run(None, {"images": images.numpy(), "valid": valid.numpy()})
    for name, a, b in zip(program.names, expected, got):
        if name in own:
            a = np.concatenate([a.reshape(-1), own[name].numpy().reshape(-1)])
            b = np.concatenate([b.reshape(-1), (b if name == "identity" else b[valid.numpy()]).reshape(-1)])
        off = float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-6)
        if not off < TOLERANCE:
            raise FitkitError(f"{path}: the exported program differs from the network in '{name}' by {off:.2g} of its size (allowed "
                              f"{TOLERANCE:g}); nothing was written, try the other format")


def _card(weights: Path, network: StatePredictor, model: FaceModel, format: str, views: int, names: tuple[str, ...],
          about: dict[str, Any]) -> dict[str, Any]:
    card = {"net": about["net"], "views": about["views"], "model": {"name": model.name, "licence": model.license, "source": model.source}}
    for beside in (weights.with_name("card.json"), weights.with_suffix(".json")):
        if beside.is_file():
            try:
                card = json.loads(beside.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{beside}: not readable as the card of the weights: {error}") from error
            break
    export = {"format": format, "fitkit": __version__, "torch": torch.__version__,
              "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
              "people": "any number (S)" if format == "torchscript" else "one at a time (S = 1)", "views": views, "inputs": INPUTS,
              "outputs": {n: OUTPUTS[n] for n in names},
              "camera_kind": network.camera_kind, "missing_views": "their rows are 0",
              "crop": to_plain(network.crop) | {"size": network.size, "rule": (
                  "square around the box of the 68 landmarks: side = margin * its larger side, centre moved up by up * its height, grey "
                  "outside of the photo, resized to size x size px")},
              "expression_names": list(model.expression_names), "licence": card.get("licence", "see 'model'")}
    return card | {"export": export}
