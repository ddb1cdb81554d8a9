import numpy as np
import pytest

from fitkit.export.overlay import _dot, _line


@pytest.mark.parametrize("end", [(90.0, 40.0), (1e9, 40.0), (-1e12, 1e12), (3e38, -3e38), (1e300, 1e300)])
@pytest.mark.filterwarnings("error")
def test_lines_to_points_far_beyond_the_picture_are_drawn(end):
    panel = np.zeros((80, 120, 3), np.uint8)
    _line(panel, (60.0, 40.0), end, (255, 0, 0), 1, 1.0)
    assert panel[40, 60, 0] > 100 and not panel[..., 1:].any()
    before = panel.copy()
    _dot(panel, end, (0, 255, 0), 1e2 if max(np.abs(end)) > 1e3 else 2.0, 1.0)
    assert np.array_equal(panel, before) == (max(np.abs(end)) > 1e3)


def test_points_that_are_no_numbers_are_not_drawn():
    panel = np.zeros((80, 120, 3), np.uint8)
    _line(panel, (60.0, 40.0), (np.nan, 4.0), (255, 0, 0), 1, 1.0)
    _line(panel, (60.0, 40.0), (np.inf, 4.0), (255, 0, 0), 1, 1.0)
    assert not panel.any()
