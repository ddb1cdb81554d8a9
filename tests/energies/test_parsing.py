from dataclasses import replace

import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.objective import Objective, Term
from fitkit.energies.parsing import ParsedRendering, ParseOptions
from fitkit.errors import InputError
from fitkit.observe.labels import Labels
from fitkit.render.lit import Lit, render_lit

MODEL = tiny_model(dtype=torch.float64)
SIZE = 96
OPTIONS = ParseOptions(size=SIZE)
STATE = tiny_state(MODEL, 2, SIZE)
OFF = STATE.replace(identity=STATE.identity + 1.0)


def painted():
    """Albedo [V, 3] with five parts: skin, brows, eyes, nose, lips."""
    x, y, z = MODEL.mean.unbind(-1)
    front = z > 0
    albedo = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64).repeat(MODEL.num_vertices, 1)
    for where, color in (
        ((y - 25).abs() < 9, (0.1, 0.1, 0.1)),
        (((x.abs() - 31).abs() < 16) & (y.abs() < 9), (0.2, 0.3, 0.7)),
        ((x.abs() < 15) & ((y + 25).abs() < 16), (0.3, 0.6, 0.2)),
        ((x.abs() < 30) & ((y + 66).abs() < 12), (0.7, 0.1, 0.1)),
    ):
        albedo[where & front] = torch.tensor(color, dtype=torch.float64)
    return albedo


ALBEDO = painted()
BACKGROUND = (0.1, 0.4, 0.5)


class Parser(torch.nn.Module):
    """Classes by the nearest of six colours, after a small blur; with a layer that behaves differently in
    training."""

    def __init__(self, sharp=200.0):
        super().__init__()
        shown = torch.tensor(
            [
                BACKGROUND,
                (0.69, 0.62, 0.54),
                (0.33, 0.33, 0.33),
                (0.44, 0.53, 0.79),
                (0.55, 0.75, 0.45),
                (0.80, 0.33, 0.33),
            ]
        )
        self.colors = torch.nn.Parameter(shown.to(torch.float64))
        self.sharp, self.drop = sharp, torch.nn.Dropout(0.3)

    def forward(self, images):
        soft = torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        return self.drop(-self.sharp * (soft[:, None] - self.colors[:, :, None, None]).square().sum(2))


def photos(state=STATE, size=SIZE):
    lit = render_lit(MODEL, state, (size, size), ALBEDO)
    return lit.over(torch.tensor(BACKGROUND, dtype=torch.float64)[:, None, None].expand_as(lit.colors))


OBS = observe(MODEL, STATE, SIZE, photos())


def energy_of(options=OPTIONS, observations=OBS, parser=None, **more):
    return ParsedRendering.prepare(
        MODEL, observations, parser or Parser(), options, **{"albedo": ALBEDO, **more}
    )


def cost(energy, state, observations=OBS):
    return Objective([Term(energy)]).cost(state, observations)[0]


def test_is_the_mean_cross_entropy_and_so_is_its_gradient():
    energy = energy_of().freeze(OFF, OBS)
    parser = Parser().eval()
    target = parser(OBS.images).argmax(1)
    assert len(target.unique()) == 6 and torch.equal(energy.target, target)
    results = []
    for face in (
        lambda s: cost(energy, s),
        lambda s: torch.nn.functional.cross_entropy(parser(energy.image(s)), target),
    ):
        identity = OFF.identity.clone().requires_grad_()
        value = face(OFF.replace(identity=identity))
        results.append((float(value.detach()), torch.autograd.grad(value, identity)[0]))
    # pixels whose cross entropy is below the floor of the root count as 0
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-9)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-6, atol=1e-9)
    assert float(results[0][1].abs().min()) > 0


def test_a_pixel_without_doubt_has_no_infinite_gradient():
    sure = energy_of(parser=Parser(1e5)).freeze(STATE, OBS)
    identity = STATE.identity.clone().requires_grad_()
    value = sure.residuals(STATE.replace(identity=identity), OBS).value
    assert float((value == 0).double().mean()) > 0.5
    (gradient,) = torch.autograd.grad(value.square().sum(), identity)
    assert bool(torch.isfinite(gradient).all())


def test_least_at_the_truth():
    energy = energy_of()
    floor = float(cost(energy.freeze(STATE, OBS), STATE))
    same = float(
        torch.nn.functional.cross_entropy(
            Parser().eval()(OBS.images), energy.freeze(STATE, OBS).target
        ).detach()
    )
    assert floor == pytest.approx(same, rel=1e-6)  # what the parser doubts about the photo itself
    assert float(cost(energy.freeze(OFF, OBS), OFF)) > 2 * floor
    moved = STATE.replace(
        pose=STATE.pose.retract(torch.tensor([[0.0, 0.1, 0, 3, 0, 0]] * 2, dtype=torch.float64))
    )
    assert float(cost(energy.freeze(moved, OBS), moved)) > 1.5 * floor


def test_gradient_reaches_light_albedo_and_pose():
    albedo, light, shift = (
        x.clone().requires_grad_()
        for x in (ALBEDO, STATE.illumination, torch.zeros(2, 6, dtype=torch.float64))
    )
    energy = energy_of(albedo=albedo).freeze(OFF, OBS)
    cost(energy, OFF.replace(illumination=light, pose=OFF.pose.retract(shift))).backward()
    assert all(
        float(x.grad.abs().sum()) > 0 and bool(torch.isfinite(x.grad).all()) for x in (albedo, light, shift)
    )
    assert not any(p.requires_grad for p in energy.parser.parameters()) and not energy.parser.training


def test_labels_take_the_place_of_the_parsers_answer():
    parse = Parser().eval()(OBS.images).argmax(1)
    known = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    known[:, :40] = False
    wrong = torch.where(known, parse, 10**6)
    labelled = replace(OBS, labels=Labels(parse=wrong, parse_valid=known))
    r = energy_of(replace(OPTIONS, target="labels"), labelled).freeze(OFF, labelled).residuals(OFF, labelled)
    own = energy_of().freeze(OFF, OBS).residuals(OFF, OBS)
    assert torch.equal(r.valid, known.flatten(1)) and torch.equal(r.value[r.valid], own.value[r.valid])
    everywhere = replace(OBS, labels=Labels(parse=parse))
    whole = energy_of(replace(OPTIONS, target="labels"), everywhere).freeze(OFF, everywhere)
    assert float(cost(whole, OFF, everywhere)) == pytest.approx(
        float(cost(energy_of().freeze(OFF, OBS), OFF))
    )
    half = ParseOptions(size=SIZE // 2, target="labels")
    assert torch.equal(energy_of(half, everywhere).freeze(OFF, everywhere).target, parse[:, 1::2, 1::2])


def test_region():
    face = energy_of(replace(OPTIONS, region="face")).freeze(OFF, OBS)
    assert torch.equal(face.valid, render_lit(MODEL, OFF, (SIZE, SIZE)).covered)
    assert bool(energy_of().freeze(OFF, OBS).valid.all())


def test_another_renderer():
    def flat(state, size, triangle):
        lit = render_lit(MODEL, state, size, ALBEDO, triangle)
        return Lit(0 * lit.colors + 0.5, lit.covered, lit.triangle)

    energy = energy_of(renderer=flat).freeze(STATE, OBS)
    image = energy.image(STATE).permute(0, 2, 3, 1)
    assert bool((image[energy.triangle >= 0] == 0.5).all())
    assert float(cost(energy, STATE)) > 2 * float(cost(energy_of().freeze(STATE, OBS), STATE))


def test_refusals():
    with pytest.raises(InputError, match="energy 'mask_parse': freeze it at a state first"):
        energy_of().residuals(STATE, OBS)
    with pytest.raises(InputError, match="energy 'mask_parse' needs labels with 'parse'"):
        energy_of(replace(OPTIONS, target="labels")).freeze(STATE, OBS)
    labelled = replace(OBS, labels=Labels(parse=torch.full((2, SIZE, SIZE), 18)))
    with pytest.raises(InputError, match="expected labels 0 to 5, the classes of the parser, got 18 to 18"):
        energy_of(replace(OPTIONS, target="labels"), labelled).freeze(STATE, labelled).residuals(
            STATE, labelled
        )
    with pytest.raises(
        InputError, match=r"expected a parser that gives \[2, C, 96, 96\], got \[2, 4, 47, 47\]"
    ):
        energy_of(parser=torch.nn.Conv2d(3, 4, 3, 2, dtype=torch.float64)).freeze(STATE, OBS)
