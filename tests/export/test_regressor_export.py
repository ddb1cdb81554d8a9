"""Networks as programs that run without fitkit."""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import tiny_model, tiny_skinned_model
from small_nets import KINDS, registered

import fitkit
from fitkit.cli.main import main
from fitkit.errors import FitkitError, InputError
from fitkit.export import regressor
from fitkit.export.regressor import BY_PERSON, OUTPUTS, export_regressor
from fitkit.models.registry import load_model
from fitkit.nets import save_predictor
from fitkit.nets.dfmvr.network import Dfmvr, DfmvrOptions
from fitkit.nets.dfmvr.rednet import Involution
from fitkit.nets.fitkit_init.network import FitkitInit, FitkitInitOptions
from fitkit.nets.mfnet.network import Mfnet, MfnetOptions
from fitkit.nets.mvdepth.network import Mvdepth, MvdepthOptions
from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions
from fitkit.nets.parser.network import ParserOptions
from fitkit.nets.pgn.network import Pgn, PgnOptions
from fitkit.nets.predictor import ViewSlot

MODEL = replace(tiny_model(), albedo_basis=0.05 * torch.sin(tiny_model().mean / 30.0)[None])
SLOTS = (ViewSlot("front"), ViewSlot("left", (-70.0, -20.0)), ViewSlot("right", (20.0, 70.0)))
RUN = """
import sys, numpy as np
sys.modules["fitkit"] = None  # an import of it fails
if sys.argv[1].endswith(".pt"):
    import torch
    program = torch.jit.load(sys.argv[1])
    def run(images, valid):
        return [v.numpy() for v in program(torch.from_numpy(images), torch.from_numpy(valid))]
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[1])
    run = lambda images, valid: session.run(None, {"images": images, "valid": valid})
data = np.load(sys.argv[2])
for people in (3, 1):
    np.savez(f"{sys.argv[3]}{people}.npz", *run(data["images"][:people], data["valid"][:people]))
"""


def network_of(name):
    torch.manual_seed(0)
    if name == "mvfnet":
        network = MvfNet(MODEL, SLOTS, MvfNetOptions(size=32, width=0.06)).eval()
        heads = (network.shape_head, network.pose_head)
        torch.nn.init.normal_(network.absent)
    elif name == "dfmvr":
        small = {"size": 32, "width": 0.05, "depth": 3, "backbone_width": 0.1, "blocks": (1, 1, 1, 1)}
        parser = ParserOptions(size=64, spatial=4, joined=8)
        network = Dfmvr(MODEL, SLOTS, DfmvrOptions(**small, parser=parser))
        for (
            module
        ) in network.modules():  # of an untrained network features grow with the square in each block
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
            if isinstance(module, Involution):
                torch.nn.init.normal_(module.span.weight, std=0.01)
                torch.nn.init.normal_(module.span.bias, std=0.2)
        with torch.no_grad():
            network(
                torch.rand(16, 3, 3, 32, 32), (torch.rand(16, 3) < 0.7).index_fill(1, torch.tensor([0]), True)
            )
        network.eval()
        heads = ([network.head],)
    elif name == "mfnet":
        network = Mfnet(MODEL, SLOTS, MfnetOptions(size=32, trunk="resnet18", hidden=16)).eval()
        heads = (network.shape_head, network.view_head)
    elif name == "pgn":
        network = Pgn(MODEL, (), PgnOptions(size=32, map=16, width=0.05)).eval()
        heads = (network.identity_head, network.expression_head)
    elif name == "mvdepth":
        small = {"growth": 4, "blocks": (1, 1, 1, 1), "features": 8, "hidden": 16, "levels": 3}
        network = Mvdepth(MODEL, (), MvdepthOptions(size=32, width=0.1, trust_width=0.05, **small)).eval()
        heads = (network.model.head, [network.depth.out], [network.trust.out])
    else:
        network = FitkitInit(MODEL, (), FitkitInitOptions(size=32, token=16, heads=2, hidden=24)).eval()
        heads = (network.identity_head, network.view_head, network.sigma_head, network.first_pose)
    for head in heads:
        torch.nn.init.normal_(head[-1].weight, std=0.2)
    return network


@pytest.fixture(scope="module", params=["mvfnet", "mfnet", "fitkit_init", "pgn", "dfmvr", "mvdepth"])
def made(request, tmp_path_factory):
    network = network_of(request.param)
    weights = tmp_path_factory.mktemp("networks") / "regressor.safetensors"
    save_predictor(network, request.param, weights, half=False)
    return network, weights


@pytest.fixture
def trained(made, tmp_path):
    """A network, and its weights in the folder of the test."""
    network, weights = made
    return network, Path(shutil.copy(weights, tmp_path))


# For tests of files, cards and comparisons: a network with named views, and one that takes any photos.
ANY_NETWORK = pytest.mark.parametrize("made", ["mvfnet", "fitkit_init"], indirect=True)


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def quick(program, images, valid, names, path):
    """Stands for an exporter where the test is about something else."""
    path.write_bytes(b"program")
    return 20


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_the_program_gives_what_the_network_gives_without_fitkit(trained, tmp_path, suffix):
    if suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    network, weights = trained
    program = export_regressor(weights, tmp_path / f"face{suffix}", model=MODEL)
    images, valid = (
        torch.rand(3, 3, 3, 32, 32),
        torch.tensor([[True, False, True], [True, True, True], [False, False, True]]),
    )
    np.savez(tmp_path / "in.npz", images=images.numpy(), valid=valid.numpy())
    subprocess.run(
        [sys.executable, "-c", RUN, str(program), str(tmp_path / "in.npz"), str(tmp_path / "out")],
        check=True,
        capture_output=True,
    )
    export = json.loads((tmp_path / "face.json").read_text())["export"]
    assert export["checked"] is True and (export["opset"] is None) == (suffix == ".pt")
    if suffix == ".onnx":
        import onnx

        file = onnx.load(str(program))
        assert {
            v.type.tensor_type.shape.dim[0].dim_param for v in (*file.graph.input, *file.graph.output)
        } == {"S"}
        assert str(Path(regressor.__file__).parent).encode() not in program.read_bytes()
    for people in (3, 1):
        with np.load(tmp_path / f"out{people}.npz") as stored:
            got = {n: torch.from_numpy(stored[f"arr_{i}"]) for i, n in enumerate(export["outputs"])}
        with torch.no_grad():
            found = network(images[:people], valid[:people])
        state = found.state
        expected = {
            "identity": state.identity,
            "expression": state.expression,
            "rotation": state.pose.rotation,
            "translation": state.pose.translation,
            "focal": state.camera.focal,
            "principal": state.camera.principal,
        }
        if found.identity_sigma is not None:
            expected["identity_sigma"] = found.identity_sigma
        if found.landmarks is not None:
            expected |= {
                "landmarks": found.landmarks.points,
                "landmark_sigma": found.landmarks.sigma,
            }
        if found.depth is not None:
            expected |= {"depth": found.depth.depth, "suitability": found.depth.suitability}
        if found.position_map is not None:
            expected["position_map"] = found.position_map.points
        if found.lit:
            expected |= {"illumination": state.illumination, "albedo": state.albedo}
        if found.parse is not None:
            expected["parse"] = found.parse
        assert set(got) == set(expected)
        for name, value in expected.items():
            assert list(got[name].shape) == [people, *export["outputs"][name]["shape"][1:]]
            mine = got[name] if name in BY_PERSON else got[name][valid[:people]]
            assert mine.shape == value.shape
            # Sums are taken in another order; the encoder's landmarks are the most sensitive to it.
            assert torch.allclose(mine, value, rtol=1e-3, atol=1e-3 * float(value.abs().max())), name
            if name not in BY_PERSON:
                assert not got[name][~valid[:people]].any()


def test_the_card_tells_what_goes_in_and_out(trained, tmp_path):
    network, weights = trained
    (tmp_path / "card.json").write_text(
        json.dumps({"recipe": "tiny", "metrics": {"vertex_mm": 1.0}, "licence": "own"})
    )
    export_regressor(weights, tmp_path / "face.pt", model=MODEL)
    card = json.loads((tmp_path / "face.json").read_text())
    assert card["recipe"] == "tiny" and card["metrics"]["vertex_mm"] == 1.0
    export = card["export"]
    assert (
        export["format"] == "torchscript"
        and export["opset"] is None
        and export["fitkit"] == fitkit.__version__
    )
    assert (
        export["views"] == 3
        and export["view_names"] == [v.name for v in network.views]
        and export["checked"] is True
    )
    crop = export["crop"]
    assert (crop["margin"], crop["up"], crop["size"]) == (
        network.crop.margin,
        network.crop.up,
        32,
    ) and "68 landmarks" in crop["rule"]
    assert export["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (
        export["expression_names"] == list(MODEL.expression_names)
        and export["camera_kind"] == network.camera_kind
    )
    assert export["licence"] == "own" and export["model"] == {
        "name": "tiny",
        "licence": MODEL.license,
        "source": MODEL.source,
    }
    assert list(export["inputs"]) == ["images", "valid"]
    assert (
        export["inputs"]["images"]["shape"] == ["S", 3, 3, 32, 32]
        and export["inputs"]["valid"]["type"] == "bool"
    )
    gives = {"identity", "expression", "rotation", "translation", "focal", "principal"}
    gives |= {"identity_sigma"} if isinstance(network, FitkitInit) else set()
    gives |= {"landmarks", "landmark_sigma"} if isinstance(network, (FitkitInit, Dfmvr)) else set()
    gives |= {"position_map"} if isinstance(network, Pgn) else set()
    gives |= {"depth", "suitability"} if isinstance(network, Mvdepth) else set()
    gives |= {"illumination", "albedo", "parse"} if isinstance(network, Dfmvr) else set()
    gives |= {"illumination", "albedo"} if isinstance(network, Mfnet) else set()
    assert list(export["outputs"]) == [n for n in OUTPUTS if n in gives]
    translation = export["outputs"]["translation"]
    assert (translation["axes"], translation["shape"], translation["unit"]) == (
        "[S, V, 3]",
        ["S", 3, 3],
        "mm",
    )
    assert export["outputs"]["identity"]["shape"] == ["S", MODEL.num_identity]
    assert files(tmp_path) == ["card.json", "face.json", "face.pt", "regressor.safetensors"]


@ANY_NETWORK
@pytest.mark.parametrize("first, second", [("face.pt", "face.onnx"), ("face.onnx", "face.pt")])
def test_two_programs_of_one_name(trained, tmp_path, monkeypatch, first, second):
    """Each has a card, also when either is written anew."""
    for name in ("_write_torchscript", "_write_onnx"):
        monkeypatch.setattr(regressor, name, quick)
    monkeypatch.setattr(regressor, "_check", lambda *a: True)
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    _, weights = trained
    formats = {"face.pt": "torchscript", "face.onnx": "onnx"}
    for overwrite in (False, True):
        for name, card in ((first, "face.json"), (second, f"{second}.json")):
            assert (
                export_regressor(weights, tmp_path / name, model=MODEL, overwrite=overwrite)
                == tmp_path / name
            )
            assert regressor.card_of(tmp_path / name) == tmp_path / card
            export = json.loads((tmp_path / card).read_text())["export"]
            assert (export["program"], export["format"]) == (name, formats[name])
    assert files(tmp_path) == sorted([first, second, "face.json", f"{second}.json", "regressor.safetensors"])
    earlier = json.loads((tmp_path / "face.json").read_text())
    del earlier["export"]["program"]  # as earlier versions wrote it
    (tmp_path / "face.json").write_text(json.dumps(earlier))
    assert (
        regressor.card_of(tmp_path / second) == tmp_path / f"{second}.json"
        and regressor.card_of(tmp_path / first) == tmp_path / "face.json"
    )
    (tmp_path / first).unlink()
    assert regressor.card_of(tmp_path / second) == tmp_path / "face.json"  # nobody else's any more


@ANY_NETWORK
def test_weights_without_a_card_of_their_training(trained, tmp_path):
    _, weights = trained
    export_regressor(weights, tmp_path / "face.pt", model=MODEL)
    card = json.loads((tmp_path / "face.json").read_text())
    assert (
        card["net"] in ("mvfnet", "fitkit_init")
        and card["model"]["name"] == "tiny"
        and card["export"]["licence"] == "see 'model'"
    )


@ANY_NETWORK
def test_refusals(trained, tmp_path, monkeypatch):
    network, weights = trained

    def refuse(message, output="face.pt", kind=InputError, **options):
        before = files(tmp_path)
        with pytest.raises(kind, match=message):
            export_regressor(weights, tmp_path / output, model=MODEL, **options)
        assert files(tmp_path) == before

    refuse("face.bin: expected a name that ends in .pt .* or .onnx", "face.bin")
    refuse("got format 'tflite'", format="tflite")
    refuse("its card would be .*regressor.json, which is taken", "regressor.pt")
    # That of the training.
    refuse("its card would be .*card.json, which is taken; choose another name", "card.pt", overwrite=True)
    refuse("its card would be .*face.json, which is taken", "face.json", format="torchscript")
    refuse("there is no folder .*nowhere; make it first", "nowhere/face.pt")
    refuse("face.pt: views: expected at least 1, got -1", views=-1)
    if network.views:
        refuse(r"takes its 3 named views \(front, left, right\), got 2; leave --views out", views=2)
    for name in ("face.pt", "face.json"):
        (tmp_path / name).write_text("{}")
        refuse(f"{name}: already exists; use --overwrite to replace it")
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        refuse(f"{name}: expected the name of a file, there is a folder of this name", overwrite=True)
        (tmp_path / name).rmdir()
    for text in ("{", "[1]", '{"mine": 1}', "[" * 5000):
        (tmp_path / "face.json").write_text(text)
        refuse("face.json: is not the card of an exported program, so it is not replaced", overwrite=True)
    (tmp_path / "face.json").unlink()
    for text in ("{", "[1]"):
        (tmp_path / "card.json").write_text(text)
        refuse(r"card.json: not readable as the card of the weights \(.*\); mend or remove it")
    (tmp_path / "card.json").unlink()
    with pytest.raises(InputError, match="none.safetensors: not readable as the weights of a regressor"):
        export_regressor(tmp_path / "none.safetensors", tmp_path / "face.pt", model=MODEL)
    with pytest.raises(InputError, match="expected face model 'tiny' with 8 identity"):
        export_regressor(weights, tmp_path / "face.pt", model=tiny_model(num_identity=5))
    for lacking in ("onnx", "onnxscript"):
        monkeypatch.setattr(
            regressor.importlib.util,
            "find_spec",
            lambda name, lacking=lacking: None if name == lacking else object(),
        )
        refuse(
            rf"face.onnx: ONNX export needs the package {lacking}, which is not installed; pip install "
            r"'fitkit\[export\]'",
            "face.onnx",
        )


@ANY_NETWORK
def test_failures_of_the_disk_and_of_torch(trained, tmp_path, monkeypatch):
    _, weights = trained

    def fail(error):
        def write(program, images, valid, names, path):
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(regressor, "_write_torchscript", write)

    fail(OSError(28, "No space left on device"))
    with pytest.raises(
        InputError, match=r"face.pt: cannot be written \(No space left on device\); choose another place"
    ):
        export_regressor(weights, tmp_path / "face.pt", model=MODEL)
    fail(RuntimeError("no such\noperator"))
    with pytest.raises(
        FitkitError,
        match=r"face.pt: torch .* cannot write this network as torchscript \(RuntimeError: no such "
        r"operator\)",
    ):
        export_regressor(weights, tmp_path / "face.pt", model=MODEL)
    assert files(tmp_path) == ["regressor.safetensors"]


@ANY_NETWORK
def test_an_onnx_file_that_nothing_here_runs_is_kept_and_says_so(trained, tmp_path, monkeypatch, caplog):
    _, weights = trained
    monkeypatch.setattr(
        regressor.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object()
    )
    monkeypatch.setattr(regressor, "_write_onnx", quick)
    with caplog.at_level(logging.WARNING, "fitkit"):
        export_regressor(weights, tmp_path / "face.onnx", model=MODEL)
    export = json.loads((tmp_path / "face.json").read_text())["export"]
    assert export["checked"] is False and export["opset"] == 20
    assert "face.onnx: was not compared with the network, which needs the package onnxruntime" in caplog.text


def test_a_program_that_differs_is_not_kept(trained, tmp_path, monkeypatch):
    _, weights = trained

    def wrong(program, images, valid, names, path):
        with torch.no_grad():
            heads = ("identity_head", "line", "shape_head", "head")
            inner = getattr(program.network, "model", program.network)
            head = next(getattr(inner, name) for name in heads if hasattr(inner, name))
            for parameter in head.parameters():
                parameter.mul_(1.05)
            torch.jit.trace(program, (images, valid), check_trace=False).save(str(path))
            for parameter in head.parameters():
                parameter.div_(1.05)

    monkeypatch.setattr(regressor, "_write_torchscript", wrong)
    with pytest.raises(FitkitError, match="differs from the network in 'identity' by .*nothing was written"):
        export_regressor(weights, tmp_path / "face.pt", model=MODEL)
    assert files(tmp_path) == ["regressor.safetensors"]


@ANY_NETWORK
@pytest.mark.parametrize(
    "output, change, message",
    [
        ("focal", lambda v: v * 1.01, "differs from the network in 'focal' by 0.01"),
        ("translation", lambda v: v * np.nan, "differs from the network in 'translation' by nan"),
    ],
)
def test_every_output_is_compared(trained, tmp_path, monkeypatch, output, change, message):
    network, weights = trained

    def changed(format, path, images, valid):
        place = list(regressor._tables(network(images, valid, padded=True))).index(output)
        with torch.no_grad():
            out = [v.numpy() for v in regressor.PaddedRegressor(network)(images, valid)]
        out[place] = change(out[place])
        return out

    monkeypatch.setattr(regressor, "_write_torchscript", quick)
    monkeypatch.setattr(regressor, "_run", changed)
    with pytest.raises(FitkitError, match=message):
        export_regressor(weights, tmp_path / "face.pt", model=MODEL)
    assert files(tmp_path) == ["regressor.safetensors"]


@ANY_NETWORK
def test_rows_of_missing_views_are_compared(trained, tmp_path, monkeypatch):
    network, weights = trained

    def changed(format, path, images, valid):
        with torch.no_grad():
            out = [v.numpy() for v in regressor.PaddedRegressor(network)(images, valid)]
        out[2][~valid.numpy()] = 1.0  # the first two may be of the person
        return out

    monkeypatch.setattr(regressor, "_write_torchscript", quick)
    monkeypatch.setattr(regressor, "_run", changed)
    with pytest.raises(
        FitkitError, match="has numbers in '.*' where views are missing, expected 0; nothing was written"
    ):
        export_regressor(weights, tmp_path / "face.pt", model=MODEL)
    assert files(tmp_path) == ["regressor.safetensors"]


def test_the_command(tmp_path):
    torch.manual_seed(0)
    weights, program = tmp_path / "regressor.safetensors", tmp_path / "face.pt"
    save_predictor(FitkitInit(load_model("generic"), (), FitkitInitOptions(size=32)), "fitkit_init", weights)
    words = ["export-regressor", str(weights), "-o", str(program), "--views", "2"]
    run = CliRunner().invoke(main, words)
    assert run.exit_code == 0 and f"written: {program} and {tmp_path / 'face.json'}" in run.output, run.output
    out = torch.jit.load(str(program))(torch.rand(1, 2, 3, 32, 32), torch.tensor([[True, False]]))
    assert out[0].shape == (1, 118) and out[2].shape == (1, 2, 53)
    again = CliRunner().invoke(main, words)
    assert (
        again.exit_code == 1
        and "face.pt: already exists; use --overwrite" in again.output
        and "Traceback" not in again.output
    )
    replaced = CliRunner().invoke(main, [*words[:-1], "1", "--overwrite", "--format", "torchscript"])
    assert (
        replaced.exit_code == 0 and json.loads((tmp_path / "face.json").read_text())["export"]["views"] == 1
    )
    assert files(tmp_path) == ["face.json", "face.pt", "regressor.safetensors"]
    unknown = CliRunner().invoke(
        main, ["export-regressor", str(weights), "-o", str(tmp_path / "face.tflite")]
    )
    assert unknown.exit_code == 1 and "expected a name that ends in .pt" in unknown.output


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
@pytest.mark.parametrize(
    "kind, outputs",
    [
        ("small_depth", {"focal", "principal", "depth", "suitability"}),
        ("small_positions", {"position_map"}),
        ("small_parser", {"parse"}),
    ],
)
def test_networks_without_a_scene_become_programs(kind, outputs, suffix, tmp_path, monkeypatch):
    if suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    registered(monkeypatch)
    torch.manual_seed(0)
    network = KINDS[kind]().eval()
    save_predictor(network, kind, tmp_path / "regressor.safetensors", half=False)
    program = export_regressor(tmp_path / "regressor.safetensors", tmp_path / f"face{suffix}")
    card = json.loads((tmp_path / "face.json").read_text())
    export = card["export"]
    assert (
        export["checked"] is True
        and set(export["outputs"]) == outputs
        and export["gives"] == list(network.gives)
    )
    assert "model" not in card and "model" not in export and "expression_names" not in export
    assert export.get("camera_kind") == ("perspective" if "focal" in outputs else None)
    assert len(export.get("parts", ())) == (10 if kind == "small_parser" else 0)
    if suffix == ".pt":
        images, valid = torch.rand(1, 3, 3, 32, 32), torch.tensor([[True, False, True]])
        got = dict(zip(export["outputs"], torch.jit.load(str(program))(images, valid)))
        with torch.no_grad():
            expected = regressor._tables(network(images, valid))
        for name, value in expected.items():
            assert (
                torch.allclose(got[name][valid], value, rtol=1e-4, atol=1e-4) and not got[name][~valid].any()
            )


def test_joints_are_among_the_outputs(tmp_path):
    model = tiny_skinned_model()
    torch.manual_seed(0)
    network = Mfnet(model, SLOTS, MfnetOptions(size=32, trunk="landmarks", hidden=16, appearance=False))
    torch.nn.init.normal_(network.shape_head[-1].weight, std=0.2)
    save_predictor(network.eval(), "mfnet", tmp_path / "regressor.safetensors", half=False)
    export_regressor(tmp_path / "regressor.safetensors", tmp_path / "face.pt", model=model)
    export = json.loads((tmp_path / "face.json").read_text())["export"]
    assert export["joint_names"] == list(model.joint_names) and "illumination" not in export["outputs"]
    assert export["outputs"]["joints"]["shape"] == ["S", 3, model.num_joints, 3]
    images, valid = torch.rand(1, 3, 3, 32, 32), torch.tensor([[True, True, False]])
    out = dict(zip(export["outputs"], torch.jit.load(tmp_path / "face.pt")(images, valid)))
    joints = network(images, valid).state.joints.detach()
    torch.testing.assert_close(out["joints"][0, :2], joints, rtol=1e-3, atol=1e-5)
    assert float(joints.abs().max()) > 0.01 and not out["joints"][0, 2].any()
