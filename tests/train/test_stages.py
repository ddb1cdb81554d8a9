"""Stages of a training: what learns in them, their own batch, views, augmentation and rate; checkpoints of
earlier versions."""

import json

import pytest
import torch
import yaml
from test_regressor_training import ANY, MODEL, SUPERVISED, Triplets, one_thread, recipe, train  # noqa: F401

from fitkit.data.augment import FaceAugmentation
from fitkit.errors import InputError
from fitkit.nets import NETS, NetKind, net_kind
from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions
from fitkit.train.regressor import CHECKPOINT, RegressorTask, open_parts, train_regressor
from fitkit.train.regressor_data import Batches, Draws, InputOptions, draw_order
from fitkit.train.regressor_recipe import parse_regressor_training
from fitkit.train.schedule import learning_rate


class WithDropout(MvfNet):
    """Its trunk ends with a dropout, so that training mode shows."""

    def __init__(self, model, views, options):
        super().__init__(model, views, options)
        self.trunk.append(torch.nn.Dropout(0.5))


@pytest.fixture(scope="module")
def people():
    return Triplets()


@pytest.fixture
def dropout(monkeypatch):
    monkeypatch.setitem(NETS, "dropout", lambda: NetKind(MvfNetOptions, WithDropout))
    return {"name": "dropout", "options": {"size": 48, "width": 0.12}}


def stage(**options):
    return {
        "name": "s",
        "steps": 3,
        "learning_rate": 0.01,
        "energies": {"identity_sup": {}, "lmk2d": {}},
    } | options


def task_of(settings, people, tmp_path):
    torch.manual_seed(settings.seed)
    network = net_kind(settings.net.name).make(MODEL, settings.views, settings.net.options)
    training, held = open_parts(settings, MODEL, {"a": people})
    return RegressorTask(settings, tmp_path, network, MODEL, training, held, None)


@pytest.mark.parametrize("always", [False, True])
def test_what_does_not_learn_keeps_weights_statistics_and_features(people, tmp_path, dropout, always):
    choice = {"net": dropout | {"frozen": ["trunk"]}} if always else {"net": dropout}
    settings = recipe([stage(free=[] if always else ["pose", "shape"])], **choice)
    task = task_of(settings, people, tmp_path)
    task.begin(torch.device("cpu"), 1)
    before = {k: v.clone() for k, v in task.network.state_dict().items()}
    optimizer = task.optimizer(0)
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert learning.isdisjoint(id(p) for p in task.network.trunk.parameters())
    assert {id(p) for p in task.network.shape_head.parameters()} <= learning and id(
        task.network.absent
    ) in learning
    for step, batch in enumerate(task.batches(0, 0)):
        task.mode(step)
        features = [task.network.features(batch.images[batch.valid]) for _ in range(2)]
        assert torch.equal(*features)  # nothing is dropped out
        optimizer.zero_grad()
        task.cost(batch, step)[0].backward()
        optimizer.step()
    after = task.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in after if k.startswith("trunk."))
    assert not torch.equal(before["shape_head.0.weight"], after["shape_head.0.weight"])


def test_what_learns_is_in_training_mode(people, tmp_path, dropout):
    task = task_of(recipe([stage(free=["trunk"])], net=dropout), people, tmp_path)
    task.begin(torch.device("cpu"), 1)
    task.optimizer(0)
    task.mode(0)
    images = torch.rand(4, 3, 48, 48)
    assert not torch.equal(task.network.features(images), task.network.features(images))
    assert not any(p.requires_grad for p in task.network.pose_head.parameters())
    assert not task.network.absent.requires_grad


def test_a_parameter_that_the_network_itself_holds_fixed_stays_fixed(people, tmp_path):
    settings = recipe([stage()], net={"options": {"size": 48, "width": 0.12, "missing": "zero"}})
    task = task_of(settings, people, tmp_path)
    task.begin(torch.device("cpu"), 1)
    assert id(task.network.absent) not in {id(p) for g in task.optimizer(0).param_groups for p in g["params"]}


def test_parts_that_cannot_be_frozen(people, tmp_path):
    with pytest.raises(InputError, match="net.frozen: unknown key 'trunc'; did you mean 'trunk'"):
        train(recipe([stage()], net={"frozen": ["trunc"]}), tmp_path / "a", people)
    with pytest.raises(
        InputError, match="stage 's': nothing learns in it: trunk are in net.frozen; free another part"
    ):
        train(recipe([stage(free=["trunk"])], net={"frozen": ["trunk"]}), tmp_path / "b", people)


def test_the_rate_is_halved_every_so_many_steps():
    settings = recipe([stage(steps=10, decay="halve_every", halve_every=3, warmup=2)])
    rates = [learning_rate(settings, [10], s) for s in range(10)]
    assert rates == pytest.approx([0.005, 0.01, 0.01, *[0.005] * 3, *[0.0025] * 3, 0.00125])
    for wrong in ({"decay": "halve_every"}, {"halve_every": 5}):
        with pytest.raises(
            InputError, match="stage 's': expected decay: halve_every together with halve_every"
        ):
            recipe([stage(**wrong)])


def test_each_stage_has_its_own_batch_views_and_augmentation(people):
    first = stage(name="one", steps=2, batch=4, most_views=1, augmentation={"shift": 0.2})
    second = stage(name="two", steps=3, batch=2, most_views=3)
    settings = recipe(
        [first, second], **(ANY | {"most_views": 2}), augmentation={"missing": 0.0, "shift": 0.1}
    )
    assert [s.batch for s in settings.stages] == [4, 2] and [s.most_views for s in settings.stages] == [1, 3]
    assert [s.augmentation.shift for s in settings.stages] == [0.2, 0.1]
    assert recipe([stage()], batch=7).stages[0].batch == 7
    network = net_kind("fitkit_init").make(MODEL, (), settings.net.options)
    training, _ = open_parts(settings, MODEL, {"a": people})
    orders = [draw_order([1.0], [8], 8, [0]), draw_order([1.0], [8], 6, [1])]
    draws = Draws([training, training], orders, MODEL, InputOptions.of(network), settings)
    sizes = [(len(b.ids), b.images.shape[1]) for b in Batches(draws, [4, 2])]
    assert sizes == [(4, 1)] * 2 + [(2, 3)] * 3
    assert [b.ids for b in Batches(draws, [4, 2], first=3)] == [b.ids for b in Batches(draws, [4, 2])][3:]
    assert isinstance(settings.stages[1].augmentation, FaceAugmentation)


def test_stages_of_different_batches_train_and_go_on(people, tmp_path):
    stages = [stage(name="one", steps=3, batch=4), stage(name="two", steps=3, batch=2, free=["shape"])]
    settings = recipe(stages, save=2)
    whole, _ = train(settings, tmp_path / "whole", people)

    def stop(step, values):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_regressor(settings, tmp_path / "cut", model=MODEL, datasets={"a": people}, step_done=stop)
    rest, _ = train(settings, tmp_path / "cut", people, resume=True)
    assert rest == {s: whole[s] for s in (5, 6)}


def test_options_of_networks_and_data_sets_are_settled_when_the_recipe_is_loaded(people, tmp_path):
    settings = recipe([stage(steps=1)])
    assert (
        settings.net.options == MvfNetOptions(size=48, width=0.12)
        and settings.data[0].options.recipe == "default"
    )
    data = [{"name": "lp", "kind": "300wlp", "options": {"triplet": 2}}]
    with pytest.raises(
        InputError, match="data 'lp': options: unknown key 'triplet'; did you mean 'triplets'"
    ):
        recipe([stage()], data=data)
    train(settings, tmp_path, people)
    stored = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert stored["net"]["options"]["margin"] == 1.5 and stored["data"][0]["options"]["count"] == 0
    assert parse_regressor_training(stored, "recipe.yaml") == settings


def test_a_training_of_a_version_that_knew_fewer_options_goes_on(people, tmp_path):
    settings = recipe([stage(steps=4)], save=2)
    train(settings, tmp_path, people)
    stored = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    del stored["net"]["frozen"], stored["stages"][0]["halve_every"], stored["stages"][0]["batch"]
    stored["net"]["options"] = {"size": 48, "width": 0.12}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stored))
    assert train(settings, tmp_path, people, resume=True)[0] == {}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stored | {"seed": 3}))
    with pytest.raises(InputError, match="belongs to another recipe"):
        train(settings, tmp_path, people, resume=True)


def test_checkpoints_of_lightnings_trainer_still_load(people, tmp_path):
    """There one optimizer had all parameters, and the step, the weights and the random state other names."""
    settings = recipe([stage(steps=4, free=["shape"], energies=SUPERVISED)], save=2)
    whole, _ = train(settings, tmp_path / "whole", people)

    def stop(step, values):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_regressor(settings, tmp_path / "cut", model=MODEL, datasets={"a": people}, step_done=stop)
    path = tmp_path / "cut" / CHECKPOINT
    new = torch.load(path, weights_only=True)
    network = net_kind("mvfnet").make(MODEL, settings.views, settings.net.options)
    everything = {id(p): number for number, p in enumerate(network.parameters())}
    learn = {id(p) for p in (*network.shape_head.parameters(), network.absent)}
    mine = [everything[id(p)] for p in network.parameters() if id(p) in learn]
    group = new["optimizer"]["param_groups"][0] | {"params": list(range(len(everything)))}
    old = {
        "global_step": new["step"],
        "state_dict": {f"network.{k}": v for k, v in new["network"].items()},
        "optimizer_states": [
            {"state": {mine[k]: v for k, v in new["optimizer"]["state"].items()}, "param_groups": [group]}
        ],
        "loops": {},
        "fitkit": {k: new[k] for k in ("random", "device_random")},
    }
    torch.save(old, path)
    rest, _ = train(settings, tmp_path / "cut", people, resume=True)
    assert rest == {s: whole[s] for s in (3, 4)}
    torch.save({"step": 2}, path)
    with pytest.raises(InputError, match="not a checkpoint of this training, it lacks network, optimizer"):
        train(settings, tmp_path / "cut", people, resume=True)
    torch.save(new | {"network": {}}, path)
    with pytest.raises(
        InputError, match="checkpoint.ckpt: does not fit this training .*remove it to start again"
    ):
        train(settings, tmp_path / "cut", people, resume=True)
    assert json.loads((tmp_path / "whole" / "card.json").read_text())["metrics"]["steps"] == 4
