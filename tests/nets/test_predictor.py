import pytest
import torch
from helpers import tiny_model, tiny_state

from fitkit.errors import InputError
from fitkit.nets.predictor import Prediction
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.depth_state import DepthState
from fitkit.scene.position_map import PositionMap

MODEL = tiny_model()
SUBJECT = torch.tensor([0, 0, 1, 2])  # four frames of three people


def everything() -> Prediction:
    state = tiny_state(MODEL, 4)
    state = state.replace(identity=torch.randn(3, MODEL.num_identity), subject=SUBJECT)
    marks = torch.rand(4, 68, 2)
    landmarks = Landmarks(marks, marks[..., 0], marks[..., 0] > 0, marks[..., 1], "surface")
    depth = DepthState(torch.rand(4, 5, 5), state.pose, state.camera, SUBJECT, torch.rand(4, 5, 5))
    return Prediction(
        state,
        torch.rand(3, MODEL.num_identity),
        landmarks,
        depth,
        PositionMap(torch.rand(4, 3, 6, 6)),
        torch.rand(4, 10, 5, 5),
        torch.rand(4, 7, 3),
    )


def test_selected_people_keep_each_part_of_their_own_frames():
    whole = everything()
    some = whole.select([2, 0])
    views = [3, 0, 1]
    assert some.gives == whole.gives and len(some.gives) == 7
    assert some.subject.tolist() == [0, 1, 1]
    assert torch.equal(some.identity_sigma, whole.identity_sigma[[2, 0]])
    assert torch.equal(some.state.expression, whole.state.select_people([2, 0]).expression)
    assert torch.equal(some.state.pose.rotation, whole.state.pose.rotation[views])
    assert torch.equal(some.landmarks.points, whole.landmarks.points[views])
    assert torch.equal(some.depth.depth, whole.depth.depth[views])
    assert torch.equal(some.depth.suitability, whole.depth.suitability[views])
    assert some.depth.subject.tolist() == [0, 1, 1]
    assert torch.equal(some.position_map.points, whole.position_map.points[views])
    assert torch.equal(some.parse, whole.parse[views])
    assert torch.equal(some.points3d, whole.points3d[views])


def test_a_prediction_without_a_state_says_whose_its_frames_are():
    depth = everything().depth
    assert torch.equal(Prediction(depth=depth).subject, SUBJECT)
    only = Prediction(parse=torch.rand(4, 10, 5, 5), subject=SUBJECT)
    assert only.gives == ("parse",) and only.select([1]).parse.shape == (1, 10, 5, 5)
    with pytest.raises(InputError, match="expected 'subject'.*valid.nonzero"):
        Prediction(parse=torch.rand(4, 10, 5, 5))


def test_a_depth_without_poses_says_that_its_frames_cannot_be_compared():
    depth = everything().depth
    assert len(depth.pairs()[0]) == 2
    with pytest.raises(InputError, match="comparing frames of a person needs their poses"):
        DepthState(depth.depth, None, depth.camera, SUBJECT).select_people([0]).pairs()
