from dataclasses import replace

import helpers
import pytest
import torch
from helpers import LucasKanade, observe, tiny_model, tiny_state

from fitkit.energies.flow_magnitude import STRICT, FlowMagnitude, FlowMagnitudeOptions
from fitkit.energies.kernels import Kernel
from fitkit.energies.landmarks import LandmarkReprojection
from fitkit.energies.masks import PARSE, weight_features
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.pair_masks import pair_mask
from fitkit.errors import InputError
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.flow.types import DifferentiableFlow
from fitkit.observe.labels import Labels
from fitkit.render.cross_view import CrossViews
from fitkit.scene.camera import KINDS
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.solvers.first_order import AdamOptions, adam
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt

MODEL = tiny_model(dtype=torch.float64)
SIZE = 96
OPTIONS = FlowMagnitudeOptions(size=SIZE, rim=3)
PLAIN = replace(OPTIONS, consistent=False, angle=False, rim=0)


def photograph(state, size=SIZE):
    return helpers.photograph(MODEL, state, size, (1.0, 0.9, 0.8))


def truth(kind="perspective", views=2, size=SIZE):
    state = tiny_state(MODEL, views, size)
    # To 20 degrees left and right.
    turn = torch.tensor([[0.0, -0.35, 0, 0, 0, 0], [0.0, 0.35, 0, 0, 0, 0]], dtype=torch.float64)
    if views == 2:
        state = state.replace(pose=state.pose.retract(-turn))
    return state.replace(camera=replace(state.camera, kind=kind))


def energy_of(state, options=OPTIONS, images=None, mask=None, size=SIZE):
    obs = observe(MODEL, state, size, photograph(state, size) if images is None else images)
    obs = obs if mask is None else replace(obs, mask=mask)
    return FlowMagnitude.prepare(MODEL, obs, LucasKanade(), options), obs


def moved(state, size=1.0):
    step = torch.tensor(
        [[0.01, -0.012, 0.008, 1.0, -0.8, 3], [-0.006, 0.01, 0.01, -0.7, 0.9, -2]], dtype=torch.float64
    )
    return state.replace(pose=state.pose.retract(size * step), identity=state.identity + 0.15 * size)


def length(energy, state, obs):
    """Median flow in pixels of a 224-pixel crop at the pixels that count."""
    r = energy.freeze(state, obs).residuals(state, obs)
    assert int(r.valid.sum()) > 500
    return float((r.value.norm(dim=-1)[r.valid] * energy.options.sigma_px).median())


# ---- values ----


def test_nothing_moves_at_the_truth():
    state = truth()
    energy, obs = energy_of(state)
    # the stand-in's noise floor on these images: what resampling alone does, in pixels of a 224-pixel crop
    assert length(energy, state, obs) < 0.1
    assert length(energy, moved(state), obs) > 5 * length(energy, state, obs)
    same = energy.estimator.displacement(obs.images, obs.images)
    assert float(same.abs().max()) == 0


@pytest.mark.parametrize("direction,sign", [("forward", 1), ("backward", -1)])
def test_direction_and_sign(direction, sign):
    # The surface assumed 1 px too far right in view 1 puts view 0's colours 1 px too far right: photo ->
    # rendering is (+1, 0). View 1 sits in view 0's place, so that its rendering is view 0's photo, moved.
    state = truth()
    state = state.replace(
        pose=state.pose.select([0, 0]),
        expression=state.expression[:1].expand(2, -1).clone(),
        camera=state.camera.select([0, 0]),
    )
    energy, obs = energy_of(state, replace(OPTIONS, directions=direction))
    camera = replace(
        state.camera, principal=state.camera.principal + torch.tensor([[0.0, 0], [1, 0]], dtype=torch.float64)
    )
    off = state.replace(camera=camera)
    frozen = energy.freeze(off, obs)
    r = frozen.residuals(off, obs)
    into = [g for g, (a, b) in enumerate(frozen.shared.pairs) if b == 1]
    assert len(r.value) == 2 and len(into) == 1
    flow = r.value[into[0]][r.valid[into[0]]] * energy.options.sigma_px * SIZE / 224
    torch.testing.assert_close(
        flow.median(0).values, torch.tensor([1.0 * sign, 0], dtype=torch.float64), atol=0.25, rtol=0
    )  # one step


def test_both_directions_are_one_behind_the_other():
    state = truth()
    energy, obs = energy_of(state, PLAIN)
    at = moved(state)
    both = energy.freeze(at, obs).residuals(at, obs)
    for part, direction in zip(both.value.chunk(2), ("forward", "backward")):
        one = replace(energy, options=replace(PLAIN, directions=direction)).freeze(at, obs).residuals(at, obs)
        assert torch.equal(one.value, part)
    r = both.value[both.valid]
    assert float(r.abs().max()) > 0


@pytest.mark.parametrize("fill", ["photo", "texture", "black", "face", "none"])
def test_fill(fill):
    state = truth()
    energy, obs = energy_of(state, replace(OPTIONS, fill=fill))
    frozen = energy.freeze(state, obs)
    rendering, photo = frozen.images(state)
    assert rendering.shape == photo.shape == (2, 3, SIZE, SIZE)
    for g, (_, b) in enumerate(frozen.shared.pairs):
        seen = torch.zeros(SIZE * SIZE, dtype=torch.bool)
        seen[frozen.shared.place[g]] = True
        seen = seen.reshape(SIZE, SIZE)
        assert 1000 < int(seen.sum()) < 0.7 * SIZE * SIZE
        assert torch.equal(photo[g][:, seen], obs.images[b][:, seen])
        assert (
            float((rendering[g] - obs.images[b])[:, seen].abs().mean()) < 0.02
        )  # view a's colours, where the state is true
        one, two = rendering[g][:, ~seen], photo[g][:, ~seen]
        if fill not in ("none", "face"):
            assert torch.equal(one, two)
        if fill == "face":  # the target's own texture on the mesh, black around it: PGN eq. 6
            face = (frozen.shared.triangle[b] >= 0)[~seen]
            assert 500 < int(face.sum()) < len(face) - 500
            assert torch.equal(one[:, face], two[:, face]) and float(one[:, ~face].abs().max()) == 0
        if fill in ("photo", "face", "none"):
            assert torch.equal(two, obs.images[b][:, ~seen])
        if fill in ("black", "none"):
            assert float(one.abs().max()) == 0
        if fill == "texture":
            assert 0.1 < float(one.std()) < 0.3 and torch.equal(
                one, energy.freeze(state, obs).images(state)[0][g][:, ~seen]
            )


def test_the_other_views_colours_only():
    # What is drawn into photo b nowhere appears in the rendering where view a sees the surface.
    state = truth()
    images = photograph(state)
    energy, obs = energy_of(state, replace(OPTIONS, consistent=False), images)
    at = moved(state)
    frozen = energy.freeze(at, obs)
    into = frozen.shared.pairs.index((0, 1))
    place = frozen.shared.place[into]
    changed = images.clone()
    changed[1] = 1 - changed[1]
    other = energy_of(state, replace(OPTIONS, consistent=False), changed)[0].freeze(at, obs)
    one, two = (e.images(at)[0][into].reshape(3, -1)[:, place] for e in (frozen, other))
    assert torch.equal(one, two)


def test_strict_variants():
    state = truth()
    at = moved(state)
    for name, options in STRICT.items():
        energy, obs = energy_of(state, replace(options, size=SIZE))
        parse = torch.ones(2, SIZE, SIZE, dtype=torch.int64)
        parse[:, 40:50] = PARSE.index("nose")
        obs = replace(obs, labels=Labels(parse=parse))
        r = energy.freeze(at, obs).residuals(at, obs)
        assert len(r.value) == (4 if name == "mvf" else 2) and bool(torch.isfinite(r.value[r.valid]).all())
        for weight, valid in zip(
            r.weight, r.valid
        ):  # no weights but the mean of each pair, and of the face's parts
            weights = set((weight[valid] / weight[valid].min()).round(decimals=6).tolist())
            assert weights == ({1.0, 5.0} if name == "pgn" else {1.0})
    assert STRICT["mvf"].fill == "texture" and STRICT["mfn"].fill == "black" and STRICT["pgn"].fill == "face"
    assert [STRICT[name].mask for name in ("mvf", "mfn", "pgn")] == ["landmarks", "box", "vertex"]


def test_weights_of_a_parse_need_one():
    state = truth()
    energy, obs = energy_of(state, replace(PLAIN, parse="pgn"))
    with pytest.raises(InputError, match="energy 'flow_mag' needs labels with 'parse'"):
        energy.freeze(state, obs)


def test_features_of_the_model_weigh_more():
    state = truth()
    plain, weighed = (
        energy_of(state, replace(PLAIN, features=f))[0].freeze(state, energy_of(state)[1]) for f in (1.0, 5.0)
    )
    on = weight_features(MODEL, 5.0) == 1
    for g, (_, b) in enumerate(weighed.shared.pairs):
        counts = plain.weight[g] > 0
        triangle = weighed.shared.triangle[b].flatten()[counts]
        ratio = (weighed.weight[g] / plain.weight[g])[counts]
        one, other = ratio[on[triangle]], ratio[~on[triangle]]
        assert len(one) > 5 and len(other) > 5
        torch.testing.assert_close(one, one[:1].expand_as(one))
        torch.testing.assert_close(other, one[:1].expand_as(other) / 5)


@pytest.mark.parametrize("mask", ["vertex", "triangle", "landmarks", "box"])
def test_the_mask_decides_which_pixels_count(mask):
    state = truth()
    energy, obs = energy_of(state, replace(PLAIN, mask=mask, min_pixels=0))
    frozen = energy.freeze(state, obs)
    expected = pair_mask(mask, MODEL, state, frozen.shared.pairs)(
        CrossViews.of(MODEL, state, (SIZE, SIZE), 1.0)
    )
    skin = MODEL.skin[MODEL.triangles].all(1)
    for g, (_, b) in enumerate(frozen.shared.pairs):
        triangle = frozen.shared.triangle[b]
        wanted = expected[g] & (triangle >= 0) & skin[triangle.clamp_min(0)]
        assert torch.equal(frozen.shared.seen[g], wanted) and 300 < int(wanted.sum()) < SIZE * SIZE / 2
    plain, _ = energy_of(state, PLAIN)
    assert not torch.equal(plain.freeze(state, obs).shared.seen, frozen.shared.seen)


def test_each_pair_counts_the_same():
    """The energy of all pairs is the mean of the energies of each."""
    state = truth(views=3)
    energy, obs = energy_of(state, replace(OPTIONS, consistent=False))
    at = state.replace(identity=state.identity + 0.2)
    frozen = energy.freeze(at, obs)
    r = frozen.residuals(at, obs)
    assert len(set(r.valid.sum(1).tolist())) > 2
    kernel = Kernel("l2n", 0.5)
    total = float(Objective([Term(frozen, 3.0, kernel)]).cost(at, obs)[0])
    parts = []
    for g in range(len(r.value)):
        rho = kernel.rho(r.value[g].square().sum(-1))[r.valid[g]]
        weight = r.weight[g][r.valid[g]]
        parts.append(float((weight * rho).sum() / weight.sum()))
    assert len(parts) == 8 and abs(total - 3 * sum(parts) / 8 / 2) < 1e-9 * total


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, normalize=3.0)])
def test_the_size_of_the_crop_does_not_matter(options):
    costs = []
    for size in (224, 448):
        state = tiny_state(MODEL, 2, size)
        state = state.replace(
            pose=state.pose.retract(
                torch.tensor([[0, 0.35, 0, 0, 0, 0], [0, -0.35, 0, 0, 0, 0]], dtype=torch.float64)
            )
        )
        energy, obs = energy_of(state, replace(options, size=112), size=size)
        at = moved(state)
        costs.append(
            float(Objective([Term(energy, 1.0, Kernel("l2n", 0.1))]).freeze(at, obs).cost(at, obs)[0])
        )
    assert abs(costs[1] / costs[0] - 1) < 0.02


# ---- derivatives ----


@pytest.mark.parametrize(
    "options,kind",
    [
        (OPTIONS, "perspective"),
        (OPTIONS, "orthographic"),
        (replace(OPTIONS, normalize=3.0), "perspective"),
        (replace(STRICT["mvf"], size=SIZE), "perspective"),
        (replace(STRICT["mfn"], size=SIZE), "perspective"),
    ],
)
def test_gradient(options, kind):
    """The gradient of the scalar face against central differences along 16 directions of all parameters."""
    assert kind in KINDS
    state = truth(kind)
    energy, obs = energy_of(state, options)
    at = moved(state)
    layout = ParameterLayout.of(at, ("identity", "expression", "pose", "focal"))
    frozen = Objective([Term(energy, 2.0, Kernel("l2n", 0.5))]).freeze(at, obs)

    def cost(step):
        return frozen.cost(retract(at, step, layout), obs)[0]

    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cost(step), step)
    assert bool((gradient != 0).all())
    gen = torch.Generator().manual_seed(0)
    analytic, numeric = [], []
    for _ in range(16):
        direction = torch.randn(layout.total, generator=gen, dtype=torch.float64)
        analytic.append(float(gradient @ direction))
        with torch.no_grad():
            numeric.append(float(cost(1e-6 * direction) - cost(-1e-6 * direction)) / 2e-6)
    analytic, numeric = torch.tensor(analytic), torch.tensor(numeric)
    # the bilinear surface has kinks, and a few of the thousands of samples step over one
    assert float((analytic - numeric).abs().max()) < 2e-3 * float(numeric.abs().max())


def test_weights_are_constant():
    state = truth()
    energy, obs = energy_of(state)
    identity = state.identity.clone().requires_grad_()
    frozen = energy.freeze(state.replace(identity=identity), obs)
    assert not frozen.weight.requires_grad and frozen.weight.shape == (4, SIZE * SIZE)


def test_what_lies_beyond_the_mask_has_no_influence():
    state = truth()
    images = photograph(state)
    mask = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    mask[0, :30], mask[1, :, 64:] = False, False
    at = moved(state)
    layout = ParameterLayout.of(at, ("identity", "pose"))
    results = []
    for value in (0.0, 0.9, torch.nan):
        energy, obs = energy_of(state, OPTIONS, torch.where(mask[:, None], images, value), mask)
        frozen = Objective([Term(energy)]).freeze(at, obs)
        step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
        cost, report = frozen.cost(retract(at, step, layout), obs)
        assert report["flow_mag"].valid > 100
        results.append((cost.detach(), torch.autograd.grad(cost, step)[0]))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])


def test_an_empty_mask():
    state = truth()
    energy, obs = energy_of(state, OPTIONS, None, torch.zeros(2, SIZE, SIZE, dtype=torch.bool))
    frozen = Objective([Term(energy)]).freeze(state, obs)
    layout = ParameterLayout.of(state, ("identity", "pose"))
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    cost, report = frozen.cost(retract(state, step, layout), obs)
    (gradient,) = torch.autograd.grad(cost, step)
    assert float(cost.detach()) == 0 and report["flow_mag"].valid == 0 and float(gradient.abs().max()) == 0


def test_too_few_pixels_do_not_count():
    state = truth()
    mask = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    mask[1] = True
    mask[0, 44:48, 44:48] = True
    energy, obs = energy_of(state, replace(PLAIN, min_pixels=500), None, mask)
    r = energy.freeze(state, obs).residuals(state, obs)
    assert (
        0 < max(len(p) for p in energy.freeze(state, obs).shared.place) < 92
    )  # 500 px of a 224-pixel crop are 92 here
    assert not bool(r.valid.any())


# ---- solvers ----


def test_descent_brings_the_view_home():
    """First-order steps on the scalar face lower it and the error of the vertices."""
    state = truth()
    energy, obs = energy_of(state, replace(OPTIONS, consistent=False))
    valid = obs.landmarks.valid.clone()
    valid[1] = False
    # Holds view 0, so that not both wander together.
    known = replace(obs, landmarks=replace(obs.landmarks, valid=valid))
    start = state.replace(
        pose=state.pose.retract(
            torch.tensor([[0.0] * 6, [0.0, 0.0, 0.01, 3.0, -2.0, 0]], dtype=torch.float64)
        )
    )
    objective = Objective(
        [Term(energy), Term(LandmarkReprojection(MODEL, torch.ones(2, 68, dtype=torch.float64), "surface"))]
    )
    problem = LeastSquaresProblem(objective, known, ParameterLayout.of(start, ("pose",)))

    def error(s):
        return float(
            (s.pose.apply(s.vertices(MODEL)) - state.pose.apply(state.vertices(MODEL)))[1, :, :2]
            .norm(dim=-1)
            .mean()
        )

    result = adam(problem, start, AdamOptions(30, 0.06))
    before, after = (float(objective.freeze(s, known).cost(s, known)[0]) for s in (start, result.x))
    assert after < 0.1 * before and error(result.x) < 0.3 * error(start)


def test_second_order_solvers_take_it_by_automatic_differentiation():
    state = truth()
    energy, obs = energy_of(state)
    start = state.replace(
        pose=state.pose.retract(
            torch.tensor([[0, 0, 0, 0.5, 0, 0]]).expand(state.num_views, 6).to(state.identity)
        )
    )
    problem = LeastSquaresProblem(
        Objective([Term(energy)]).freeze(start, obs), obs, ParameterLayout.of(start, ("pose",))
    )
    result = levenberg_marquardt(problem, start, LMOptions(1))
    assert result.cost_history[-1] < result.cost_history[0]


def test_refusals():
    state = truth()
    energy, obs = energy_of(state)
    message = (
        r"energy 'flow_mag' differentiates through the flow: expected a network \('ptlflow:NAME'\), got "
        r"'dis'; "
        "energy 'flow_corr' takes it"
    )
    with pytest.raises(InputError, match=message):
        FlowMagnitude.prepare(MODEL, obs, make_flow_estimator("dis"), OPTIONS)
    with pytest.raises(InputError, match="energy 'flow_mag': freeze it at a state first"):
        energy.residuals(state, obs)
    one = state.replace(
        expression=state.expression[:1],
        subject=state.subject[:1],
        pose=state.pose.select([0]),
        camera=state.camera.select([0]),
    )
    with pytest.raises(
        InputError,
        match=r"compares views of one person: expected at least 2 .* got 1 view\(s\) .*; give its stage "
        r"min_v",
    ):
        energy.freeze(one, obs)
    assert isinstance(LucasKanade(), DifferentiableFlow)


def test_people_are_not_compared_with_each_other():
    state = truth(views=3)
    state = state.replace(identity=state.identity.expand(2, -1).clone(), subject=torch.tensor([0, 1, 0]))
    energy, obs = energy_of(state)
    assert set(energy.freeze(state, obs).shared.pairs) == {(0, 2), (2, 0)}


@pytest.mark.slow
def test_a_real_network(tmp_path):
    """Gradients pass through a network of ptlflow, here with random weights."""
    ptlflow = pytest.importorskip("ptlflow", reason="the package ptlflow is not installed")
    torch.manual_seed(0)
    path = tmp_path / "raft_small.ckpt"
    torch.save({"state_dict": ptlflow.get_model("raft_small").state_dict()}, path)
    state = truth(size=160)
    obs = observe(MODEL, state, 160, photograph(state, 160))
    network = make_flow_estimator("ptlflow:raft_small", str(path))
    energy = FlowMagnitude.prepare(
        MODEL, obs, network, FlowMagnitudeOptions(size=160, directions="forward", consistent=False)
    )
    layout = ParameterLayout.of(state, ("identity", "pose"))
    step = torch.zeros(layout.total, dtype=torch.float64, requires_grad=True)
    cost, report = Objective([Term(energy, 1e-3)]).freeze(state, obs).cost(retract(state, step, layout), obs)
    (gradient,) = torch.autograd.grad(cost, step)
    assert (
        report["flow_mag"].valid > 1000
        and bool(torch.isfinite(gradient).all())
        and bool((gradient != 0).all())
    )


@pytest.mark.slow
def test_in_a_recipe(anna, monkeypatch, tmp_path):
    import fitkit
    from fitkit.fitting import stages

    made = []
    monkeypatch.setattr(
        stages,
        "make_flow_estimator",
        lambda name, weights, device: made.append((name, weights)) or LucasKanade(),
    )
    recipe = tmp_path / "through_the_network.yaml"
    recipe.write_text("""
extends: landmarks
name: through_the_network
flow: {estimator: "ptlflow:raft", weights: a.ckpt}
stages:
  - name: flow
    min_views: 2
    free: [identity, pose, focal]
    energies:
      lmk2d: {}
      identity_prior: {}
      flow_mag: {weight: 30, kernel: {name: l2n, radius: 0.5}, options: {size: 96, directions: forward}}
    solver: {name: adam, max_iterations: 4}
""")
    result = fitkit.fit(anna, recipe=str(recipe))
    assert made == [("ptlflow:raft", "a.ckpt")] and result.status == "ok"
    assert result.metrics["stages"][-1]["terms"]["flow_mag"]["valid"] > 1000
    with pytest.raises(InputError, match="energy 'flow_mag' differentiates through the flow"):
        monkeypatch.undo()
        fitkit.fit(anna, recipe=str(recipe), overrides=["flow.estimator=dis", "flow.weights=''"])
