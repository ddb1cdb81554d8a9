import csv
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import dotted_faces
from safetensors import safe_open
from trainings import one_thread  # noqa: F401 - a fixture

from fitkit.cli.main import main
from fitkit.errors import FitError, InputError
from fitkit.observe.landmarks.network import LandmarkNetwork, NetworkOptions, NetworkOutput
from fitkit.train.landmark_recipe import LossOptions, load_landmark_training
from fitkit.train.landmarks import (
    WEIGHTS,
    LandmarkCrops,
    landmark_loss,
    learning_rate,
    load_faces,
    train_landmarks,
    validate,
)

SMALL = (
    "frames.share=1",
    "network.size=64",
    "network.widths=[8, 12, 16, 24, 32]",
    "network.blocks=[0, 0, 1, 0]",
    "network.decoder=[24, 16, 16]",
    "schedule.batch=8",
    "schedule.workers=0",
    "schedule.warmup=5",
    "schedule.bfloat16=false",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    # 'person 0' ... of these names some are held out
    folder = tmp_path_factory.mktemp("people")
    dotted_faces(folder, [f"p{i}" for i in range(12)], frames=2)
    return folder


def recipe(tree, *overrides):
    return load_landmark_training("landmarks", [f"frames.folder={tree}", *SMALL, *overrides])


def losses(recipe, folder, **options):
    out = {}
    train_landmarks(
        recipe, folder, step_done=lambda step, values: out.__setitem__(step, values["total"]), **options
    )
    return out


@pytest.mark.slow
def test_training_learns_where_the_points_are(tree, tmp_path):
    settings = recipe(
        tree, "schedule.steps=150", "schedule.save=75", "schedule.average=0.9", "schedule.learning_rate=0.005"
    )
    train_landmarks(settings, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "log.csv").read_text().splitlines()))
    assert [int(float(r["step"])) for r in rows] == [75, 150]
    # Points all at the middle of the square have an error of about 45 % of the face.
    assert float(rows[-1]["validation_nme_percent"]) < 12
    assert float(rows[-1]["likelihood"]) < float(rows[0]["likelihood"])


@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_training_goes_on_with_the_same_losses(tree, tmp_path, earlier):
    settings = recipe(tree, "schedule.steps=8", "schedule.save=4")
    whole = losses(settings, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(step, values):
        if step == 6:  # after the checkpoint of step 4
            raise Stop

    with pytest.raises(Stop):
        train_landmarks(settings, tmp_path / "cut", step_done=stop)
    if earlier:  # versions that had a loop of their own for this network kept no more than this
        path = tmp_path / "cut" / "checkpoint.pt"
        state = torch.load(path, weights_only=True)
        text = (tmp_path / "cut" / "recipe.yaml").read_text()
        kept = {k: state[k] for k in ("step", "network", "optimizer", "average")}
        torch.save(kept | {"recipe": text}, path)
    # What is reported is a running mean, which starts anew; the weights tell whether all is as it was.
    begun = []
    rest = losses(settings, tmp_path / "cut", resume=True, begun=lambda *steps: begun.append(steps))
    assert begun == [(4, 8)]
    assert sorted(rest) == [5, 6, 7, 8]
    with safe_open(tmp_path / "whole" / WEIGHTS, "pt") as a, safe_open(tmp_path / "cut" / WEIGHTS, "pt") as b:
        assert all(torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in a.keys())
    assert len(whole) == 8


def test_the_weights_hold_the_options_and_half_precision(tree, tmp_path):
    settings = recipe(tree, "schedule.steps=2", "schedule.save=2")
    path = train_landmarks(settings, tmp_path)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["network"])["widths"] == [8, 12, 16, 24, 32]
        assert all(file.get_tensor(k).dtype == torch.float16 for k in file.keys())


def test_a_crop_depends_on_seed_and_number_alone(tree, tmp_path):
    settings = recipe(tree)
    faces = load_faces(settings, tmp_path)
    a, b = LandmarkCrops(faces, settings)[17], LandmarkCrops(faces, settings)[17]
    other = LandmarkCrops(faces, recipe(tree, "seed=1"))[17]
    assert (a.image == b.image).all() and not (
        a.image.shape == other.image.shape and (a.image == other.image).all()
    )


def test_held_out_people_are_not_trained_on(tree, tmp_path):
    faces = load_faces(recipe(tree), tmp_path)
    assert len(faces.validation) >= 2 and len(faces.frames) + len(faces.validation) == 24


def test_the_likelihood_is_lowest_at_the_true_noise():
    # Distances drawn from the density itself: the gamma distribution of shape 2 and scale b.
    generator, b = np.random.default_rng(0), 2.5
    r, angle = generator.gamma(2.0, b, (4000, 85)), generator.uniform(0, 2 * np.pi, (4000, 85))
    error = torch.from_numpy(np.stack([r * np.cos(angle), r * np.sin(angle)], -1)).float()
    batch = {
        "points": torch.zeros(4000, 85, 2),
        "known": torch.ones(4000, 85, dtype=torch.bool),
        "visible": torch.ones(4000, 85, dtype=torch.bool),
        "visible_known": torch.zeros(4000, 85, dtype=torch.bool),
    }
    # The standard deviation of each coordinate.
    sigmas = np.exp(np.linspace(-0.3, 0.3, 13)) * float(error.std())
    values = [
        float(
            landmark_loss(
                NetworkOutput(error, torch.full((4000, 85), math.log(s)), torch.zeros(4000, 85)),
                batch,
                128,
                LossOptions(),
            )["likelihood"]
        )
        for s in sigmas
    ]
    assert int(np.argmin(values)) in (5, 6, 7)
    assert float(error.std()) == pytest.approx(math.sqrt(3) * b, rel=0.01)


def test_the_loss_ignores_unknown_points_and_has_right_gradients():
    torch.manual_seed(0)
    known = torch.rand(2, 85) > 0.4
    batch = {
        "points": torch.randn(2, 85, 2, dtype=torch.float64) * 5,
        "known": known,
        "visible": torch.rand(2, 85) > 0.5,
        "visible_known": torch.rand(2, 85) > 0.5,
    }
    inputs = [
        torch.randn(2, 85, *shape, dtype=torch.float64).mul(scale).requires_grad_()
        for shape, scale in (((2,), 5), ((), 1), ((), 1))
    ]

    def total(points, log_sigma, logits):
        return landmark_loss(NetworkOutput(points, log_sigma, logits), batch, 128, LossOptions())["total"]

    total(*inputs).backward()
    assert (inputs[0].grad[~known] == 0).all() and (inputs[1].grad[~known] == 0).all()
    assert (inputs[2].grad[~batch["visible_known"]] == 0).all()
    assert torch.autograd.gradcheck(total, inputs)


def test_learning_rate_rises_and_falls_to_zero(tree):
    settings = recipe(tree, "schedule.steps=100", "schedule.warmup=10", "schedule.learning_rate=0.01")
    rates = [learning_rate(s, settings) for s in (1, 10, 55, 100)]
    assert rates == pytest.approx([0.001, 0.01, 0.005, 0.0])


def test_points_move_with_the_features():
    # A network with one-hot heat maps answers the centre of that cell.
    network = LandmarkNetwork(
        NetworkOptions(size=64, widths=(4, 4, 4, 4, 4), blocks=(0, 0, 0, 0), decoder=(4, 4, 4))
    ).eval()
    features = torch.zeros(1, 4, 16, 16)
    features[0, 0, 5, 9] = 100.0
    with torch.no_grad():
        network.heat.weight.zero_()
        network.heat.bias.zero_()
        network.heat.weight[:, 0] = 1.0
        out = network._locate(features)
    assert out.points[0, 0].tolist() == pytest.approx([9.5 * 4 - 0.5, 5.5 * 4 - 0.5], abs=1e-3)


def test_validation_of_a_perfect_network_is_zero(tree, tmp_path):
    faces = load_faces(recipe(tree), tmp_path)
    from fitkit.data.landmark_frames import make_crop

    class Perfect(torch.nn.Module):
        options = NetworkOptions(size=64)

        def forward(self, crops):
            points = torch.from_numpy(np.stack([make_crop(f, 64).points for f in faces.validation]))
            return NetworkOutput(points + torch.tensor([0.6, 0.8]), points[..., 0], points[..., 0])

    sizes = [np.sqrt(np.prod(np.ptp(make_crop(f, 64).points[:68], axis=0))) for f in faces.validation]
    assert validate(Perfect(), faces.validation, "cpu") == pytest.approx(
        100 * np.mean(1 / np.array(sizes)), rel=1e-5
    )


def test_user_errors_are_one_sentence(tree, tmp_path):
    settings = recipe(tree, "schedule.steps=2", "schedule.save=2")
    train_landmarks(settings, tmp_path / "out")
    with pytest.raises(InputError, match="there is a training in it; continue it with --resume"):
        train_landmarks(settings, tmp_path / "out")
    with pytest.raises(InputError, match="belongs to another recipe"):
        train_landmarks(recipe(tree, "schedule.steps=3", "schedule.save=3"), tmp_path / "out", resume=True)
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a readable checkpoint"):
        train_landmarks(settings, tmp_path / "out", resume=True)
    torch.save({"step": 1}, tmp_path / "out" / "checkpoint.pt")
    with pytest.raises(InputError, match="not a checkpoint of this training, it lacks network, optimizer"):
        train_landmarks(settings, tmp_path / "out", resume=True)
    with pytest.raises(InputError, match="frames.folder is not set; give the folder"):
        load_landmark_training("landmarks")
    with pytest.raises(InputError, match="frames.share: expected a number from 0 to 1, got 2"):
        load_landmark_training("landmarks", ["frames.share=2"])
    with pytest.raises(InputError, match="did you mean 'steps'"):
        load_landmark_training("landmarks", ["schedule.step=5"])


def test_a_loss_that_is_no_number_stops_the_training(tree, tmp_path):
    with pytest.raises(
        FitError,
        match=r"(the loss is nan|the gradient of the loss is not finite) \(crops \d+ to \d+ of the "
        r"training\); lower schedule.learning_rate",
    ):
        train_landmarks(
            recipe(
                tree,
                "schedule.steps=40",
                "schedule.save=40",
                "schedule.warmup=1",
                "schedule.learning_rate=1e9",
            ),
            tmp_path,
        )


def test_command_trains_and_names_the_file(tree, tmp_path):
    arguments = [
        "landmarks",
        f"frames.folder={tree}",
        *SMALL,
        "schedule.steps=2",
        "schedule.save=2",
        "-o",
        str(tmp_path / "out"),
        "-q",
    ]
    result = CliRunner().invoke(main, ["train-landmarks", *arguments])
    assert result.exit_code == 0 and (tmp_path / "out" / WEIGHTS).is_file()
    assert str(tmp_path / "out" / WEIGHTS) in result.output
    again = CliRunner().invoke(main, ["train-landmarks", *arguments])
    assert again.exit_code == 1 and "continue it with --resume" in again.output


def test_folders_and_disks_that_cannot_be_used(tree, tmp_path, monkeypatch):
    settings = recipe(tree, "schedule.steps=2", "schedule.save=2")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="holds 'notes.txt', which train-landmarks does not write"):
        train_landmarks(settings, tmp_path)
    with pytest.raises(InputError, match="recipe.yaml: cannot be written"):
        train_landmarks(settings, tmp_path / "notes.txt" / "out")

    def full(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        InputError, match=r"checkpoint.pt: cannot be written \(No space left on device\); make room"
    ):
        train_landmarks(settings, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        WEIGHTS,
        "log.csv",
        "recipe.yaml",
        "tensorboard",
    ]
