"""Networks of the package ptlflow: learned flow that is differentiable in its images."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fitkit.errors import InputError, MissingWeightsError, did_you_mean
from fitkit.observe.flow.types import Flow, check_images

TIMEOUT = 30  # seconds without an answer when weights are downloaded
# Trained on scenes of all kinds, the first that a network has.
GENERAL = ("things", "mixed", "mix", "tartan", "sintel")
OTHERWISE = "or choose the flow estimator dis or farneback, which need none"


class PtlFlow:
    """A network of ptlflow (Morimitsu, "PyTorch Lightning Optical Flow", 2021; Apache licence) with fixed,
    trained weights.

    Args:
        network: one of ptlflow.get_model_names(), e.g. 'raft_small'.
        weights: a checkpoint file as ptlflow writes it, or the name of one of the network's published
            checkpoints; None takes a published one, kept in torch.hub's folder (moved by TORCH_HOME).
        device: torch device.
    Raises:
        MissingWeightsError: no package, no such network, or weights that cannot be had, are damaged or of
            another network.
    """

    def __init__(self, network: str, weights: str | None = None, device: str = "cpu"):
        self.name = f"ptlflow:{network}"
        package = _package(self.name)
        names = package.get_model_names()
        if network not in names:
            near = did_you_mean(network, names).replace("'", "'ptlflow:", 1)
            hint = near or "'ptlflow.get_model_names()' lists them"
            raise MissingWeightsError(
                f"flow estimator: ptlflow {package.__version__} has no network '{network}'; {hint}"
            )
        self.network = _trained(package, self.name, network, weights).to(device).eval().requires_grad_(False)

    def displacement(self, source: Tensor, target: Tensor) -> Tensor:
        """source, target [B, 3 or 1, H, W] in [0, 1] -> [B, 2, H, W] px (x, y), differentiable in both
        images.

        Raises:
            InputError: images the network cannot take (too small for its pyramid), or a network for more than
                two images.
        """
        check_images(self.name, source, target)
        like = next(self.network.parameters())
        # ptlflow's networks take BGR, as OpenCV reads it.
        pair = torch.stack([source, target], 1).expand(-1, -1, 3, -1, -1).flip(2).to(like)
        try:
            flows = self.network({"images": pair})["flows"]
        except (RuntimeError, ValueError, IndexError, AssertionError, KeyError, TypeError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            H, W = source.shape[-2:]
            raise InputError(
                f"flow estimator '{self.name}': the network cannot take two images of {W} x {H} px "
                f"({_first_line(error)}); enlarge the flow's size or choose another network"
            ) from error
        return flows[:, -1].to(source)

    @torch.no_grad()
    def estimate(self, source: Tensor, target: Tensor) -> Flow:
        """source, target [B, 3 or 1, H, W] in [0, 1] -> Flow, detached; valid where the network's answer is
        finite."""
        flow = self.displacement(source, target)
        valid = torch.isfinite(flow).all(1)
        return Flow(torch.where(valid[:, None], flow, 0), valid)


def _package(name: str):
    """The module ptlflow, imported without its messages about optional parts."""
    try:
        with _quiet():
            return importlib.import_module("ptlflow")
    except ImportError as error:
        raise MissingWeightsError(
            f"flow estimator '{name}' needs the package ptlflow ({_first_line(error)}); "
            f"pip install ptlflow, {OTHERWISE}"
        ) from error


def _trained(package, name: str, network: str, weights: str | None) -> torch.nn.Module:
    """The network with its weights; never without."""
    published = getattr(package.get_model_reference(network), "pretrained_checkpoints", {})
    if weights is None:
        if not published:
            raise MissingWeightsError(
                f"flow estimator '{name}': ptlflow publishes no weights for it; "
                "give a checkpoint file as flow.weights"
            )
        weights = next((w for w in GENERAL if w in published), next(iter(published)))
    is_file = os.path.isfile(weights)
    if not is_file and weights not in published:
        raise MissingWeightsError(
            f"flow estimator '{name}': weights '{weights}' are neither a file nor one of ptlflow's "
            f"checkpoints ({', '.join(published) or 'it has none'})"
        )
    where = (
        f"the weights {weights}"
        if is_file
        else f"the weights '{weights}' of {Path(torch.hub.get_dir()) / 'checkpoints'}"
    )
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # the download has none
    try:
        with _quiet():
            # ptlflow reads with weights_only=True and loads strictly: nothing in the file is run, no tensor
            # is left random.
            model = package.get_model(network, ckpt_path=str(weights))
    except Exception as error:  # a damaged file raises many kinds
        # URLError and timeouts are OSErrors; so is a file that is cut off, for some cuts.
        if isinstance(error, ImportError) or (isinstance(error, OSError) and not is_file):
            raise MissingWeightsError(
                f"flow estimator '{name}': {where} cannot be had ({_first_line(error)}); on a machine with "
                f"network load it once and copy the file, {OTHERWISE}"
            ) from error
        remedy = "give another file" if is_file else "delete the file there"
        raise MissingWeightsError(
            f"flow estimator '{name}': {where} are damaged or of another network "
            f"({_first_line(error)}); {remedy}, {OTHERWISE}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    if not all(bool(torch.isfinite(p).all()) for p in model.state_dict().values() if p.is_floating_point()):
        raise MissingWeightsError(
            f"flow estimator '{name}': {where} are damaged (not all numbers are finite); take others, "
            f"{OTHERWISE}"
        )
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what ptlflow prints and logs while it loads."""
    try:
        from loguru import logger
    except ImportError:
        logger = None
    if logger is not None:
        logger.disable("ptlflow")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if logger is not None:
            logger.enable("ptlflow")


def _first_line(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"no entry {error}"
    lines = [line.strip().rstrip(":;.") for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0]
