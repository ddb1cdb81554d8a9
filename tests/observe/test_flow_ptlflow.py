"""Real networks of ptlflow with random weights from a small file: no accuracy, but everything around the
network."""

import importlib
import sys
from urllib.error import URLError

import pytest
import torch

from fitkit.errors import InputError, MissingWeightsError
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.flow.types import DifferentiableFlow

SIZE = 128  # px: RAFT's four levels of correlation need as much


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ptlflow", None)
    with pytest.raises(
        MissingWeightsError,
        match=r"flow estimator 'ptlflow:raft' needs the package ptlflow \(.*\); pip install ptlflow, "
        "or choose the flow estimator dis or farneback, which need none",
    ):
        make_flow_estimator("ptlflow:raft")


@pytest.fixture(scope="module")
def ptlflow():
    try:
        return importlib.import_module("ptlflow")
    except ImportError as error:
        pytest.skip(f"the package ptlflow is not installed ({error})")


@pytest.fixture(scope="module")
def weights(ptlflow, tmp_path_factory):
    """A checkpoint file of raft_small with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "raft_small.ckpt"
    torch.save({"state_dict": ptlflow.get_model("raft_small").state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def estimator(weights):
    return make_flow_estimator("ptlflow:raft_small", str(weights))


def pair(channels=3, size=SIZE):
    gen = torch.Generator().manual_seed(3)
    return torch.rand(2, 1, channels, size, size, generator=gen).unbind(0)


def test_the_networks_own_answer_in_its_own_channel_order(ptlflow, weights, estimator):
    source, target = pair()
    flow = estimator.estimate(source, target)
    assert estimator.name == "ptlflow:raft_small" and isinstance(estimator, DifferentiableFlow)
    assert (
        flow.displacement.shape == (1, 2, SIZE, SIZE)
        and bool(flow.valid.all())
        and not flow.displacement.requires_grad
    )
    reference = ptlflow.get_model("raft_small", ckpt_path=str(weights)).eval()
    with torch.no_grad():
        expected = reference({"images": torch.stack([source, target], 1)[:, :, [2, 1, 0]]})["flows"][:, 0]
    assert torch.equal(flow.displacement, expected)
    assert (
        float((estimator.estimate(target, source).displacement - expected).abs().max()) > 1e-3
    )  # the order of the images matters
    again = make_flow_estimator("ptlflow:raft_small", str(weights)).estimate(source, target)
    assert torch.equal(again.displacement, flow.displacement)


def test_the_graph_reaches_the_images_and_not_the_weights(estimator):
    source, target = pair()
    source, target = source.requires_grad_(), target.requires_grad_()
    by_source, by_target = torch.autograd.grad(
        estimator.displacement(source, target).square().mean(), (source, target)
    )
    for gradient in (by_source, by_target):
        assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0
    assert not any(p.requires_grad for p in estimator.network.parameters()) and not estimator.network.training
    assert torch.equal(
        estimator.displacement(source, target).detach(), estimator.estimate(source, target).displacement
    )


def test_grey_double_and_odd_sizes(estimator):
    source, target = pair(1)
    grey = estimator.estimate(source, target).displacement
    assert torch.equal(
        grey, estimator.estimate(source.expand(-1, 3, -1, -1), target.expand(-1, 3, -1, -1)).displacement
    )
    double = estimator.estimate(source.double(), target.double()).displacement
    assert double.dtype == torch.float64 and torch.equal(double.float(), grey)
    assert estimator.estimate(source[..., :131, :125], target[..., :131, :125]).displacement.shape == (
        1,
        2,
        128,
        125,
    )
    with pytest.raises(
        InputError,
        match=r"'ptlflow:raft_small': the network cannot take two images of 16 x 16 px \(.*\); enlarge",
    ):
        estimator.estimate(source[..., :16, :16], target[..., :16, :16])


def test_a_flow_that_is_not_finite_is_not_valid(estimator, monkeypatch):
    source, target = pair()

    def broken(inputs):
        flows = torch.ones(1, 1, 2, SIZE, SIZE)
        flows[..., 0, 5] = torch.nan
        return {"flows": flows}

    monkeypatch.setattr(estimator.network, "forward", broken)
    flow = estimator.estimate(source, target)
    assert (
        int((~flow.valid).sum()) == 1
        and not bool(flow.valid[0, 0, 5])
        and float(flow.displacement[0, :, 0, 5].abs().sum()) == 0
    )


def test_unknown_network(ptlflow):
    with pytest.raises(
        MissingWeightsError,
        match=r"ptlflow [\d.]+ has no network 'raft_smal'; did you mean 'ptlflow:raft_small'\?",
    ):
        make_flow_estimator("ptlflow:raft_smal")
    with pytest.raises(
        MissingWeightsError, match=r"has no network 'qqq'; 'ptlflow.get_model_names\(\)' lists them"
    ):
        make_flow_estimator("ptlflow:qqq")


def test_files_that_cannot_be_used(ptlflow, weights, tmp_path):
    def refused(message, file):
        with pytest.raises(MissingWeightsError, match=message) as caught:
            make_flow_estimator("ptlflow:raft_small", str(file))
        assert "\n" not in str(caught.value)

    refused(
        "weights 'none.ckpt' are neither a file nor one of ptlflow's checkpoints \\(things\\)", "none.ckpt"
    )
    damaged = (
        r"flow estimator 'ptlflow:raft_small': the weights .*{} are damaged or of another network "
        r"\(.*\); give another file, or"
    )
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(weights.read_bytes()[:5000])
    refused(damaged.format("cut.ckpt"), cut)
    text = tmp_path / "text.ckpt"
    text.write_text("not found")
    refused(damaged.format("text.ckpt"), text)
    empty = tmp_path / "empty.ckpt"
    empty.touch()
    refused(damaged.format("empty.ckpt"), empty)
    state = torch.load(weights, weights_only=True)["state_dict"]
    bare = tmp_path / "bare.ckpt"
    torch.save(state, bare)
    refused(r"damaged or of another network \(no entry 'state_dict'\)", bare)
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": ptlflow.get_model("pwcnet").state_dict()}, other)
    refused(damaged.format("other.ckpt"), other)
    part = tmp_path / "part.ckpt"  # nothing may be left random
    torch.save({"state_dict": {k: v for k, v in state.items() if not k.startswith("fnet")}}, part)
    refused(damaged.format("part.ckpt"), part)
    nan = tmp_path / "nan.ckpt"
    torch.save(
        {"state_dict": {k: v * torch.nan if k.startswith("fnet") else v for k, v in state.items()}}, nan
    )
    refused(r"the weights .*nan.ckpt are damaged \(not all numbers are finite\); take others", nan)


class _Payload:
    def __reduce__(self):
        return (open, ("never_written", "w"))


def test_a_file_that_would_run_something_is_refused(ptlflow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(MissingWeightsError, match="evil.ckpt are damaged or of another network"):
        make_flow_estimator("ptlflow:raft_small", str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "never_written").exists()


def test_published_weights(ptlflow, weights, tmp_path, monkeypatch):
    """Taken from torch.hub's folder or fetched; never left out."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def fetch(url, **options):
        asked.append(url)
        assert options["weights_only"] and options["check_hash"]
        return torch.load(weights, weights_only=True)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    published = make_flow_estimator("ptlflow:raft_small")
    assert asked == [ptlflow.get_model_reference("raft_small").pretrained_checkpoints["things"]]
    source, target = pair()
    same = make_flow_estimator("ptlflow:raft_small", str(weights))
    assert torch.equal(
        published.estimate(source, target).displacement, same.estimate(source, target).displacement
    )
    make_flow_estimator("ptlflow:raft_small", "things")
    assert len(asked) == 2

    def offline(url, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(
        MissingWeightsError,
        match=r"the weights 'things' of .*checkpoints cannot be had \(.*no route to host.*\); "
        "on a machine with network load it once and copy the file, or choose",
    ):
        make_flow_estimator("ptlflow:raft_small")

    def damaged(url, **options):
        raise RuntimeError('invalid hash value (expected "a", got "b")')

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", damaged)
    with pytest.raises(
        MissingWeightsError,
        match=r"are damaged or of another network \(invalid hash value .*\); delete the file there",
    ):
        make_flow_estimator("ptlflow:raft_small")
    reference = ptlflow.get_model_reference("raft_small")
    monkeypatch.setattr(reference, "pretrained_checkpoints", {})
    with pytest.raises(
        MissingWeightsError,
        match="ptlflow publishes no weights for it; give a checkpoint file as flow.weights",
    ):
        make_flow_estimator("ptlflow:raft_small")
