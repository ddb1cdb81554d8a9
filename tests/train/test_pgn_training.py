"""The recipe `pgn` at a size of seconds: all its stages, what learns in each, an interruption."""

import json
from dataclasses import replace

import pytest
import torch
from trainings import one_thread, run  # noqa: F401 - a fixture

from fitkit.data.face_dataset import FaceDataset
from fitkit.errors import InputError
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, net_kind
from fitkit.synth.dataset import SynthDataset
from fitkit.synth.recipe import load_synth_recipe
from fitkit.train.regressor_recipe import load_regressor_training

SMALL = (
    "net.options={size: 32, map: 16, width: 0.05, encoder: prnet, start: mean}",
    "net.start=''",
    "stages.decoder.steps=1",
    "stages.decoder.batch=3",
    *(f"stages.{name}.steps=2" for name in ("landmarks", "codes", "pairs", "fours")),
    *(f"stages.{name}.batch=3" for name in ("landmarks", "codes", "pairs", "fours")),
    "stages.pairs.energies.sem_feat.options.size=32",
    "stages.fours.energies.sem_feat.options.size=32",
    "save=3",
    "log=1",
    "pictures=4",
    "accelerator=cpu",
    "validation.share=0.0",
    "data.frames.held_out=0",
    "data.fits.held_out=0",
)


def unlabelled(labels):
    """As real frames."""
    return None


def without_scene(labels):
    """As people of another face model."""
    return replace(labels, state=None, vertices=None, known=())


class Kept(FaceDataset):
    """Samples in memory, with what is left of their labels."""

    def __init__(self, samples, left=lambda labels: labels):
        self.samples = [
            replace(s, observations=replace(s.observations, labels=left(s.observations.labels)))
            for s in samples
        ]
        self.ids = tuple(s.id for s in samples)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.fixture(scope="module")
def model():
    return load_model("generic")


@pytest.fixture(scope="module")
def data(model):
    recipe = load_synth_recipe("clean", ["size=64", "views=4"])
    rendered = SynthDataset(recipe, 3, model, {"vertices", "crop_vertices"})
    samples = [rendered[i] for i in range(3)]
    return {
        "synthetic": Kept(samples),
        "makehuman": Kept(samples, without_scene),
        "frames": Kept(samples, unlabelled),
        "fits": Kept(samples),
    }


@pytest.mark.slow
def test_all_stages_run_and_go_on_after_an_interruption(model, data, tmp_path):
    settings = load_regressor_training("pgn", SMALL)
    whole, path = run(tmp_path / "whole", model, data, settings)
    assert [set(whole[s]) - {"total"} for s in (1, 2, 4, 6, 8)] == [set(s.energies) for s in settings.stages]
    assert all(torch.isfinite(torch.tensor(list(v.values()))).all() for v in whole.values())
    assert whole[6]["census_xview"] > 0 and whole[6]["sem_feat"] > 0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", model, data, settings, stop=5)
    rest, _ = run(tmp_path / "cut", model, data, settings, resume=True)
    assert rest == {s: whole[s] for s in range(4, 10)}
    network = load_predictor(path)
    assert network.gives == ("state", "position_map")
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    assert card["metrics"]["steps"] == 9
    assert (tmp_path / "whole" / "pictures" / "step_0000008.png").is_file()


@pytest.mark.slow
def test_the_map_is_learned_first_and_stays(model, data, tmp_path):
    settings = load_regressor_training("pgn", SMALL)
    first = replace(settings, stages=settings.stages[:2])
    torch.manual_seed(settings.seed)
    start = net_kind("pgn").make(model, (), settings.net.options).state_dict()
    _, path = run(tmp_path / "first", model, data, first)
    _, more = run(tmp_path / "more", model, data, settings)
    one, two = (load_predictor(p).state_dict() for p in (path, more))

    def changed(a, b, part):
        return any(not torch.equal(a[k].half(), b[k].half()) for k in a if k.startswith(part))

    for part in ("encoder.", "decoder."):  # with the running statistics of their batch norms
        assert changed(start, one, part) and not changed(one, two, part)
    for part in ("identity_head.", "expression_head."):
        assert not changed(start, one, part) and changed(one, two, part)


@pytest.mark.slow
def test_the_map_learns_where_the_landmarks_are(model, data, tmp_path):
    """From 3D points of some and from 2D points of others in the same stage."""
    still = "stages.landmarks.augmentation={shift: 0.0, zoom: 0.0, rotate: 0.0, gain: 0.0, offset: 0.0}"
    settings = load_regressor_training(
        "pgn",
        [
            *SMALL,
            "stages.landmarks.steps=140",
            "stages.landmarks.warmup=5",
            "stages.landmarks.learning_rate=2e-3",
            "stages.landmarks.batch=6",
            "net.options.width=0.25",
            "save=200",
            "pictures=0",
            still,
        ],
    )
    settings = replace(settings, stages=settings.stages[1:2])
    losses, _ = run(tmp_path, model, data, settings)
    first, last = (sum(losses[s]["lmk_posmap"] for s in steps) for steps in (range(1, 21), range(121, 141)))
    assert last < 0.8 * first


def test_an_energy_looks_through_the_network_itself_only_where_it_does_not_learn(model, data, tmp_path):
    settings = load_regressor_training("pgn", [*SMALL, "stages.pairs.free=[heads, encoder]"])
    with pytest.raises(
        InputError,
        match="stage 'pairs': energy 'sem_feat' looks through the network itself, whose encoder must not",
    ):
        run(tmp_path / "a", model, data, settings)
    frozen = load_regressor_training(
        "pgn",
        [*SMALL, "stages.pairs.free=[heads, encoder]", "net.frozen=[encoder]", "stages.landmarks.free=[]"],
    )
    frozen = replace(frozen, stages=(frozen.stages[2],))
    run(tmp_path / "b", model, data, frozen)


def test_the_published_recipe_can_be_built():
    settings = load_regressor_training("pgn-strict")
    assert settings.net.options.size == settings.net.options.map == 256
    assert [(s.steps, s.batch, s.most_views) for s in settings.stages] == [
        (600000, 32, 1),
        (400000, 16, 1),
        (200000, 4, 2),
        (200000, 4, 4),
    ]


@pytest.mark.slow
def test_the_published_stages_run_small(model, data, tmp_path):
    """Without the flow, whose network is no part of fitkit."""
    names = ("landmarks", "codes", "pairs", "fours")
    small = [
        "net.options={size: 64, map: 64, encoder: prnet, width: 0.05, last: 3, pose: affine, start: none}",
        *(f"stages.{name}.steps=1" for name in names),
        *(f"stages.{name}.batch=2" for name in names),
        "accelerator=cpu",
        "validation.share=0.0",
        "pictures=0",
        "log=1",
    ]
    settings = load_regressor_training("pgn-strict", small)
    without = [{k: v for k, v in s.energies.items() if k != "flow_mag"} for s in settings.stages]
    settings = replace(
        settings, stages=tuple(replace(s, energies=e) for s, e in zip(settings.stages, without))
    )
    seen = {"lp": data["synthetic"], **dict.fromkeys(("menpo", "celeba", "video", "pie"), data["frames"])}
    losses, _ = run(tmp_path, model, seen, settings)
    assert [set(losses[k]) - {"total"} for k in range(1, 5)] == [set(e) for e in without]
    assert all(v >= 0 for values in losses.values() for v in values.values())
