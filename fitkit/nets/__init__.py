"""Networks that predict faces from pictures: one folder for each, behind one interface."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.energies.features import FrozenNetwork
from fitkit.errors import InputError, MissingWeightsError
from fitkit.io.foreign import DATA_BYTES, ForeignFile, foreign_file, parse_json
from fitkit.io.options import build, to_plain, unknown_key
from fitkit.io.resources import asset_path
from fitkit.io.weights import network_from
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.nets.predictor import Predictor, ViewSlot, resized


@dataclass(frozen=True)
class NetKind:
    """What makes a network of one kind.

    options: dataclass of its options; make: (face model, views, options) -> the network; a network that gives
    no state may be made without a face model (None); named_views: it has an input for each named view,
    otherwise it takes any number of photos.
    """

    options: type
    make: Callable[..., Predictor]
    named_views: bool = True


def _mvfnet() -> NetKind:
    from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions

    return NetKind(MvfNetOptions, MvfNet)


def _mfnet() -> NetKind:
    from fitkit.nets.mfnet.network import Mfnet, MfnetOptions

    return NetKind(MfnetOptions, Mfnet)


def _fitkit_init() -> NetKind:
    from fitkit.nets.fitkit_init.network import FitkitInit, FitkitInitOptions

    return NetKind(FitkitInitOptions, FitkitInit, named_views=False)


def _pgn() -> NetKind:
    from fitkit.nets.pgn.network import Pgn, PgnOptions

    return NetKind(PgnOptions, Pgn, named_views=False)


def _dfmvr() -> NetKind:
    from fitkit.nets.dfmvr.network import Dfmvr, DfmvrOptions

    return NetKind(DfmvrOptions, Dfmvr)


def _mvdepth() -> NetKind:
    from fitkit.nets.mvdepth.network import Mvdepth, MvdepthOptions

    return NetKind(MvdepthOptions, Mvdepth, named_views=False)


def _parser() -> NetKind:
    from fitkit.nets.parser.network import Parser, ParserOptions

    return NetKind(ParserOptions, Parser, named_views=False)


NETS: dict[str, Callable[[], NetKind]] = {
    "mvfnet": _mvfnet,
    "mfnet": _mfnet,
    "dfmvr": _dfmvr,
    "mvdepth": _mvdepth,
    "fitkit_init": _fitkit_init,
    "parser": _parser,
    "pgn": _pgn,
}
FORMAT = "fitkit-regressor-1"
NO_REGRESSOR = (
    "not readable as the weights of a regressor",
    "expected the regressor.safetensors that fitkit train-regressor writes",
)
BUILTIN = "builtin"  # as the weights to start from: the shipped landmark network


def net_kind(name: str) -> NetKind:
    """A network by name.

    Raises:
        InputError: no such network; it names the nearest one.
    """
    if name not in NETS:
        raise unknown_key(name, NETS, "net")
    return NETS[name]()


def save_predictor(network: Predictor, name: str, path: str | os.PathLike, half: bool = True) -> None:
    """Weights as .safetensors, with everything that is needed to build the network again as JSON in the
    metadata.

    name: of the kind of network; half: floating-point weights in half precision.
    """
    from safetensors.torch import save

    def stored(x):
        return x.detach().cpu().to(torch.float16 if half and x.is_floating_point() else x.dtype).contiguous()

    about = {
        "net": name,
        "options": to_plain(network.options),
        "views": to_plain(network.views),
        "model": network.model_name,
        "num_identity": network.num_identity,
        "num_expression": network.num_expression,
        "gives": list(network.gives),
    }
    tensors = {k: stored(v) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    # Its own file writer makes files that only their owner may read, and turns errors of the disk into
    # another kind.
    data = save(tensors, metadata={"format": FORMAT, "regressor": json.dumps(about)})
    # It writes the metadata in any order; the same training gives the same file.
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def read_about(path: str | os.PathLike) -> dict[str, Any]:
    """What the metadata of a weight file say: net, options, views, gives; model, num_identity, num_expression
    where it gives a state, else '' and 0.

    Raises:
        InputError: no such file, or not the weights of a regressor.
    """
    with foreign_file(path, *NO_REGRESSOR, limit=DATA_BYTES) as file:
        return _about(file)


def _about(file: ForeignFile) -> dict[str, Any]:
    metadata = file.metadata()
    about = parse_json(metadata["regressor"].encode()) if metadata.get("format") == FORMAT else None
    kinds = {
        "net": str,
        "options": dict,
        "views": list,
        "model": str,
        "num_identity": int,
        "num_expression": int,
        "gives": list,
    }
    if isinstance(about, dict):
        about = {"gives": ["state"]} | about  # files of earlier versions do not say
    if not isinstance(about, dict) or any(not isinstance(about.get(k), kind) for k, kind in kinds.items()):
        raise InputError(f"{file.path}: not the weights of a regressor; {NO_REGRESSOR[1]}")
    return about


def model_of(about: dict[str, Any], path: str | os.PathLike) -> FaceModel:
    """The face model that weights name; about: from `read_about`.

    Raises:
        InputError, MissingWeightsError: it is not on this machine.
    """
    name = about["model"]
    try:
        return load_model(name)
    except (InputError, MissingWeightsError) as error:
        raise type(error)(
            f"{path}: its network was trained with face model '{name}': {error}; a model file of your own is "
            f"imported with 'fitkit model import npz FILE --name {name}'"
        ) from error


def load_predictor(path: str | os.PathLike, model: FaceModel | None = None) -> Predictor:
    """A trained network from its weight file, in eval mode.

    model: the face model that it was trained with; None: loaded by its name, where the network gives a state.

    Raises:
        InputError: not such a file, or another face model.
    """
    with foreign_file(path, *NO_REGRESSOR, limit=DATA_BYTES) as file:
        about = _about(file)
        if "state" in about["gives"]:
            model = model_of(about, path) if model is None else model
            got = (model.name, model.num_identity, model.num_expression)
            wanted = (about["model"], about["num_identity"], about["num_expression"])
            if got != wanted:
                raise InputError(
                    f"{path}: expected face model '{wanted[0]}' with {wanted[1]} identity and {wanted[2]} "
                    f"expression shapes, got '{got[0]}' with {got[1]} and {got[2]}; load the model that the "
                    "training used"
                )
        kind = net_kind(about["net"])
        views = tuple(build(ViewSlot, v, f"{path}: view") for v in about["views"])
        options = build(kind.options, about["options"], f"{path}: options")
        network = network_from(lambda: kind.make(model, views, options), file.tensors())
    return network.eval()


def load_network(name: str, weights: str | os.PathLike, device: str = "cpu") -> FrozenNetwork:
    """A network that an energy compares pictures with; it never learns, see FrozenNetwork.

    Args:
        name: what of it is asked for: 'parser', pictures [B, 3, h, w] sRGB in [0, 1] -> logits [B, C, h, w]
            of the parts of a face;
        'encoder', pictures -> features [B, K]. weights: regressor.safetensors of fitkit train-regressor.
    Raises:
        InputError: another name, weights that cannot be used, or those of a network that does not give this.
    """
    if name not in FROZEN:
        raise unknown_key(name, FROZEN, "network of an energy")
    if not os.fspath(weights):
        raise InputError(f"network '{name}' of an energy: expected 'weights', {NO_REGRESSOR[1][9:]}")
    network = load_predictor(weights)
    if name == "parser" and "parse" not in network.gives:
        raise InputError(
            f"{weights}: expected a network that gives 'parse', it gives {', '.join(network.gives)}; "
            "train one with an energy that has a parse as its label"
        )
    if name == "encoder" and type(network).features is Predictor.features:
        raise InputError(
            f"{weights}: expected a network with features of a picture, {type(network).__name__} has none; "
            "mvfnet, mfnet, fitkit_init, pgn and mvdepth do"
        )
    return FrozenNetwork(FROZEN[name](network)).to(device)


class _Parser(nn.Module):
    """Pictures of any size -> what the network says of them, at that size."""

    def __init__(self, network: Predictor):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.parse_of(images)


class _Encoder(nn.Module):
    def __init__(self, network: Predictor):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(resized(images, (self.network.size,) * 2))


class OwnNetwork(FrozenNetwork):
    """What an energy compares pictures with (see `load_network`) of a network that is being trained, while
    what makes it does not learn. It has no weights of its own.

    Raises:
        InputError: another name.
    """

    def __init__(self, network: Predictor, name: str):
        super().__init__(nn.Identity())
        if name not in FROZEN:
            raise unknown_key(name, FROZEN, "network of an energy")
        self._looks = (FROZEN[name](network),)  # a tuple, so that it is no part of this module

    def forward(self, images: Tensor) -> Tensor:
        return self._looks[0](images)


FROZEN: dict[str, Callable[[Predictor], nn.Module]] = {"parser": _Parser, "encoder": _Encoder}


def _is_landmark_network(path: str | os.PathLike) -> bool:
    try:
        with foreign_file(path, *NO_REGRESSOR, limit=DATA_BYTES) as file:
            return "network" in file.metadata()
    except InputError:
        return False  # load_predictor says what is wrong with it


def start_from(network: Predictor, path: str | os.PathLike, model: FaceModel | None) -> None:
    """Fill a network with weights to start a training from: a regressor.safetensors of the same network, face
    model and views, a .pth, .pt or .tar file for its trunk, if it has `load_trunk`, or 'builtin', the shipped
    landmark network, or the file of another one for its encoder, if it has `load_encoder`; the
    regressor.safetensors of a parser, or 'builtin', the shipped one, for the parser inside of it, if it has
    `load_parser`. A network with a parser and a landmark network inside takes the shipped one for that of
    which no file is given.

    Raises:
        InputError: no such file, or weights of something else.
    """
    if os.fspath(path).endswith((".pth", ".pt", ".tar")) and hasattr(network, "load_trunk"):
        with foreign_file(
            path, "not readable as weights of a network", f"expected {network.trunk_file}", limit=DATA_BYTES
        ) as file:
            network.load_trunk(file.torch(), os.fspath(path))
        for name, values in network.state_dict().items():
            if not bool(values.isfinite().all()):
                raise InputError(
                    f"{path}: expected finite weights, got NaN or infinity in what becomes {name}; the file "
                    "is damaged, get it again"
                )
        return
    if hasattr(network, "load_encoder") and (os.fspath(path) == BUILTIN or _is_landmark_network(path)):
        from fitkit.observe.landmarks.builtin import read_network

        network.load_encoder(
            read_network(None if os.fspath(path) == BUILTIN else Path(path)), os.fspath(path)
        )
        return
    if hasattr(network, "load_parser"):
        from fitkit.nets.parser.photos import WEIGHTS
        from fitkit.observe.landmarks.builtin import read_network

        own, builtin = os.fspath(path), asset_path(WEIGHTS)
        points = own != BUILTIN and _is_landmark_network(path)
        if own == BUILTIN or points or read_about(path)["net"] == "parser":
            if points or network.trunk is not None:
                network.load_landmarks(read_network(Path(path) if points else None), own)
            shipped = own == BUILTIN or points
            if network.parser is not None or network.trunk is None or not shipped:
                network.load_parser(
                    load_predictor(builtin if shipped else path), os.fspath(builtin) if points else own
                )
            return
    other = load_predictor(path, model)
    if type(other) is not type(network):
        raise InputError(
            f"{path}: expected weights of the recipe's network, {type(network).__name__}, got those of "
            f"{type(other).__name__}; give another file, or net.start='' to start from nothing"
        )
    mine, theirs = ((to_plain(n.options), to_plain(n.views)) for n in (network, other))
    if mine != theirs:
        raise InputError(
            f"{path}: these weights belong to another network than the recipe's (options {theirs[0]}, views "
            f"{', '.join(v.name for v in other.views) or 'none'}); give net.options and views as they were "
            "in that training"
        )
    network.load_state_dict(other.state_dict())
