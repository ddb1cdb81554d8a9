import pytest

from fitkit.errors import InputError
from fitkit.io.progress import Progress, Step


def test_a_part_tells_where_it_is_in_the_whole():
    told = []
    whole = Progress(told.append)
    whole.at(0.1, "reading")
    part = whole.part(0.2, 0.6, "fitting")
    part.at(0.0)
    part.at(0.5, "stage flow")
    part.part(0.5, 1.0).counted(1, 4, "anna")
    whole.counted(0, 0)
    assert [(s.text, pytest.approx(s.share)) for s in told] == [
        ("reading", 0.1),
        ("fitting", 0.2),
        ("stage flow", 0.4),
        ("fitting", 0.45),
        ("", 1.0),
    ]
    assert told[3] == Step("fitting", told[3].share, 1, 4, "anna")


def test_what_a_user_gives():
    told = []
    Progress.of(lambda text, share: told.append((text, share))).part(0.5, 1.0).at(0.5, "half")
    assert told == [("half", 0.75)]
    progress = Progress()
    assert Progress.of(progress) is progress
    Progress.of(None).at(0.3, "nobody listens")
    with pytest.raises(InputError, match=r"progress: expected a function of \(text, share\), got int"):
        Progress.of(3)
