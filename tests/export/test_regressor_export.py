"""Networks as programs that run without fitkit."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import tiny_model

from fitkit.cli.main import main
from fitkit.errors import FitkitError, InputError
from fitkit.export import regressor
from fitkit.export.regressor import OUTPUTS, export_regressor
from fitkit.models.registry import load_model
from fitkit.nets import save_predictor
from fitkit.nets.fitkit_init.network import FitkitInit, FitkitInitOptions
from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions
from fitkit.nets.predictor import ViewSlot

MODEL = tiny_model()
SLOTS = (ViewSlot("front"), ViewSlot("left", (-70.0, -20.0)), ViewSlot("right", (20.0, 70.0)))
RUN = """
import sys, numpy as np
sys.modules["fitkit"] = None  # an import of it fails
data = np.load(sys.argv[2])
if sys.argv[1].endswith(".pt"):
    import torch
    out = [v.numpy() for v in torch.jit.load(sys.argv[1])(*(torch.from_numpy(data[k]) for k in ("images", "valid")))]
else:
    import onnxruntime
    out = onnxruntime.InferenceSession(sys.argv[1]).run(None, dict(data))
np.savez(sys.argv[3], *out)
"""


def network_of(name):
    torch.manual_seed(0)
    if name == "mvfnet":
        network = MvfNet(MODEL, SLOTS, MvfNetOptions(size=32, width=0.06)).eval()
        heads = (network.shape_head, network.pose_head)
        torch.nn.init.normal_(network.absent)
    else:
        network = FitkitInit(MODEL, (), FitkitInitOptions(size=32, token=16, heads=2, hidden=24)).eval()
        heads = (network.identity_head, network.view_head, network.sigma_head, network.first_pose)
    for head in heads:
        torch.nn.init.normal_(head[-1].weight, std=0.2)
    return network


@pytest.fixture(params=["mvfnet", "fitkit_init"])
def trained(request, tmp_path):
    network = network_of(request.param)
    save_predictor(network, request.param, tmp_path / "regressor.safetensors", half=False)
    return network, tmp_path / "regressor.safetensors"


@pytest.mark.parametrize("suffix, people", [(".pt", 3), (".onnx", 1)])
def test_the_program_gives_what_the_network_gives_without_fitkit(trained, tmp_path, suffix, people):
    if suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    network, weights = trained
    program = export_regressor(weights, tmp_path / f"face{suffix}", model=MODEL)
    images, valid = torch.rand(people, 3, 3, 32, 32), torch.ones(people, 3, dtype=torch.bool)
    valid[0, 1] = False
    np.savez(tmp_path / "in.npz", images=images.numpy(), valid=valid.numpy())
    subprocess.run([sys.executable, "-c", RUN, str(program), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")], check=True,
                   capture_output=True)
    card = json.loads((tmp_path / "face.json").read_text())
    with np.load(tmp_path / "out.npz") as stored:
        got = {n: torch.from_numpy(stored[f"arr_{i}"]) for i, n in enumerate(card["export"]["outputs"])}
    with torch.no_grad():
        found = network.predict(images, valid)
    state = found.state
    expected = {"identity": state.identity, "expression": state.expression, "rotation": state.pose.rotation,
                "translation": state.pose.translation, "focal": state.camera.focal, "principal": state.camera.principal}
    if found.landmarks is not None:
        expected |= {"identity_sigma": found.identity_sigma, "landmarks": found.landmarks.points, "landmark_sigma": found.landmarks.sigma}
    assert set(got) == set(expected)
    for name, value in expected.items():
        mine = got[name] if name.startswith("identity") else got[name][valid]
        assert mine.shape == value.shape
        assert torch.allclose(mine, value, rtol=1e-3, atol=1e-3 * float(value.abs().max())), name
        if not name.startswith("identity"):
            assert float(got[name][~valid].abs().max()) == 0


def test_the_card_tells_what_goes_in_and_out(trained, tmp_path):
    network, weights = trained
    (tmp_path / "card.json").write_text(json.dumps({"recipe": "tiny", "metrics": {"vertex_mm": 1.0}, "licence": "own"}))
    export_regressor(weights, tmp_path / "face.pt", model=MODEL)
    card = json.loads((tmp_path / "face.json").read_text())
    assert card["recipe"] == "tiny" and card["metrics"]["vertex_mm"] == 1.0
    export = card["export"]
    assert export["format"] == "torchscript" and export["views"] == 3 and export["licence"] == "own"
    assert export["crop"]["margin"] == network.crop.margin and export["crop"]["size"] == 32 and len(export["weights_sha256"]) == 64
    assert export["expression_names"] == list(MODEL.expression_names) and export["camera_kind"] == "orthographic"
    assert set(export["outputs"]) <= set(OUTPUTS) and ("landmarks" in export["outputs"]) == isinstance(network, FitkitInit)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", "face.json", "face.pt", "regressor.safetensors"]


def test_refusals(trained, tmp_path, monkeypatch):
    network, weights = trained

    def refuse(message, output="face.pt", kind=InputError, **options):
        with pytest.raises(kind, match=message):
            export_regressor(weights, tmp_path / output, model=MODEL, **options)
        assert not list(tmp_path.glob("*.part"))

    refuse("face.bin: expected a name that ends in .pt .* or .onnx", "face.bin")
    refuse("got format 'tflite'", format="tflite")
    refuse("its card would be .*regressor.json, which is taken", "regressor.pt")
    refuse("there is no folder .*nowhere; make it first", "nowhere/face.pt")
    if network.views:
        refuse(r"takes its 3 named views \(front, left, right\), got 2", views=2)
    else:
        refuse("views: expected at least 1, got -1", views=-1)
    (tmp_path / "face.json").write_text("{}")
    refuse("face.json: already exists; use --overwrite")
    (tmp_path / "face.json").unlink()
    (tmp_path / "card.json").write_text("{")
    refuse("card.json: not readable as the card of the weights")
    (tmp_path / "card.json").unlink()
    with pytest.raises(InputError, match="none.safetensors: not readable as the weights of a regressor"):
        export_regressor(tmp_path / "none.safetensors", tmp_path / "face.pt", model=MODEL)
    monkeypatch.setattr(regressor.importlib.util, "find_spec", lambda name: None)
    refuse(r"needs the package onnx, which is not installed; pip install 'fitkit\[export\]'", "face.onnx")


def test_a_program_that_differs_is_not_kept(trained, tmp_path, monkeypatch):
    _, weights = trained

    def wrong(program, images, valid, names, path):
        with torch.no_grad():
            head = program.network.identity_head if hasattr(program.network, "identity_head") else program.network.shape_head
            for parameter in head.parameters():
                parameter.mul_(1.05)
            torch.jit.trace(program, (images, valid), check_trace=False).save(str(path))
            for parameter in head.parameters():
                parameter.div_(1.05)

    monkeypatch.setattr(regressor, "_write_torchscript", wrong)
    with pytest.raises(FitkitError, match="differs from the network in 'identity' by .*nothing was written"):
        export_regressor(weights, tmp_path / "face.pt", model=MODEL)
    assert [p.name for p in tmp_path.iterdir()] == ["regressor.safetensors"]


def test_the_command(tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "regressor.safetensors"
    save_predictor(FitkitInit(load_model("generic"), (), FitkitInitOptions(size=32)), "fitkit_init", weights)
    run = CliRunner().invoke(main, ["export-regressor", str(weights), "-o", str(tmp_path / "face.pt"), "--views", "2"])
    assert run.exit_code == 0 and f"written: {tmp_path / 'face.pt'} and {tmp_path / 'face.json'}" in run.output, run.output
    out = torch.jit.load(str(tmp_path / "face.pt"))(torch.rand(1, 2, 3, 32, 32), torch.tensor([[True, False]]))
    assert out[0].shape == (1, 120) and out[2].shape == (1, 2, 53)
