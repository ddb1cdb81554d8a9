"""Networks that predict a SceneState from pictures: one folder for each, behind one interface."""
from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fitkit.errors import InputError
from fitkit.io.options import build, to_plain, unknown_key
from fitkit.models.face_model import FaceModel
from fitkit.nets.predictor import StatePredictor, ViewSlot


@dataclass(frozen=True)
class NetKind:
    """options: dataclass of the network's options; make: (face model, views, options) -> the network; named_views: it has an input for
    each named view, otherwise it takes any number of photos."""

    options: type
    make: Callable[[FaceModel, tuple[ViewSlot, ...], Any], StatePredictor]
    named_views: bool = True


def _mvfnet() -> NetKind:
    from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions

    return NetKind(MvfNetOptions, MvfNet)


def _fitkit_init() -> NetKind:
    from fitkit.nets.fitkit_init.network import FitkitInit, FitkitInitOptions

    return NetKind(FitkitInitOptions, FitkitInit, named_views=False)


NETS: dict[str, Callable[[], NetKind]] = {"mvfnet": _mvfnet, "fitkit_init": _fitkit_init}
FORMAT = "fitkit-regressor-1"
BUILTIN = "builtin"  # as the weights to start from: the shipped landmark network


def net_kind(name: str) -> NetKind:
    """A network by name.

    Raises:
        InputError: no such network; it names the nearest one.
    """
    if name not in NETS:
        raise unknown_key(name, NETS, "net")
    return NETS[name]()


def save_predictor(network: StatePredictor, name: str, path: str | os.PathLike, half: bool = True) -> None:
    """Weights as .safetensors, with everything that is needed to build the network again as JSON in the metadata.

    name: of the kind of network; half: floating-point weights in half precision.
    """
    from safetensors.torch import save

    def stored(x):
        return x.detach().cpu().to(torch.float16 if half and x.is_floating_point() else x.dtype).contiguous()

    about = {"net": name, "options": to_plain(network.options), "views": to_plain(network.views), "model": network.model_name,
             "num_identity": network.num_identity, "num_expression": network.num_expression}
    tensors = {k: stored(v) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    # Its own file writer makes files that only their owner may read, and turns errors of the disk into another kind.
    data = save(tensors, metadata={"format": FORMAT, "regressor": json.dumps(about)})
    # It writes the metadata in any order; the same training gives the same file.
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size:])


def read_about(path: str | os.PathLike) -> dict[str, Any]:
    """What the metadata of a weight file say: net, options, views, model, num_identity, num_expression.

    Raises:
        InputError: no such file, or not the weights of a regressor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
        about = json.loads(metadata["regressor"]) if metadata.get("format") == FORMAT else None
        wrong = not isinstance(about, dict) or {"net", "options", "views", "model", "num_identity", "num_expression"} - set(about)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not readable as the weights of a regressor ({' '.join(str(error).split())}); "
                         "expected the regressor.safetensors that fitkit train-regressor writes") from error
    if wrong:
        raise InputError(f"{path}: not the weights of a regressor; expected the regressor.safetensors that fitkit train-regressor writes")
    return about


def load_predictor(path: str | os.PathLike, model: FaceModel) -> StatePredictor:
    """A trained network from its weight file, in eval mode, for the face model that it was trained with.

    Raises:
        InputError: not such a file, or another face model.
    """
    about = read_about(path)
    got = (model.name, model.num_identity, model.num_expression)
    wanted = (about["model"], about["num_identity"], about["num_expression"])
    if got != wanted:
        raise InputError(f"{path}: expected face model '{wanted[0]}' with {wanted[1]} identity and {wanted[2]} expression shapes, "
                         f"got '{got[0]}' with {got[1]} and {got[2]}; load the model that the training used")
    kind = net_kind(about["net"])
    views = tuple(build(ViewSlot, v, f"{path}: view") for v in about["views"])
    network = kind.make(model, views, build(kind.options, about["options"], f"{path}: options"))
    _fill(network, path)
    return network.eval()


def _fill(network: StatePredictor, path: str | os.PathLike) -> None:
    from safetensors.torch import load_file

    weights = load_file(os.fspath(path))
    known = network.state_dict()
    keep = {k for k in known if not k.endswith("num_batches_tracked")}
    if set(weights) != keep or any(weights[k].shape != known[k].shape for k in keep):
        raise InputError(f"{path}: the weights do not fit the network that its metadata describe; the file is damaged, write it again")
    network.load_state_dict(weights, strict=False)


def _is_landmark_network(path: str | os.PathLike) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), "pt") as file:
            return "network" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False  # load_predictor says what is wrong with it


def start_from(network: StatePredictor, path: str | os.PathLike, model: FaceModel) -> None:
    """Fill a network with weights to start a training from: a regressor.safetensors of the same network, face model and views, a
    .pth file for its trunk, if it has `load_trunk`, or 'builtin', the shipped landmark network, or the file of another one for its
    encoder, if it has `load_encoder`.

    Raises:
        InputError: no such file, or weights of something else.
    """
    if os.fspath(path).endswith((".pth", ".pt")) and hasattr(network, "load_trunk"):
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - torch raises many kinds for a damaged file
            raise InputError(f"{path}: not readable as weights of a network ({type(error).__name__}); expected torchvision's vgg11_bn") from error
        network.load_trunk(weights, os.fspath(path))
        return
    if hasattr(network, "load_encoder") and (os.fspath(path) == BUILTIN or _is_landmark_network(path)):
        from fitkit.observe.landmarks.builtin import read_network

        network.load_encoder(read_network(None if os.fspath(path) == BUILTIN else Path(path)), os.fspath(path))
        return
    other = load_predictor(path, model)
    mine, theirs = ((to_plain(n.options), to_plain(n.views)) for n in (network, other))
    if type(other) is not type(network) or mine != theirs:
        raise InputError(f"{path}: these weights belong to another network than the recipe's (options {theirs[0]}, views "
                         f"{', '.join(v.name for v in other.views)}); give net.options and views as they were in that training")
    network.load_state_dict(other.state_dict())
