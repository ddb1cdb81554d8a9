from fitkit.export.arkit import ARKIT, SUFFIX, arkit_shapes, missing_of_arkit
from fitkit.export.morphs import morphs_of
from fitkit.models.registry import load_model


def test_arkit_has_52_shapes_of_which_36_are_one_side_of_a_pair():
    assert len(set(ARKIT)) == len(ARKIT) == 52
    pairs = {name.replace("Left", "").replace("Right", "") for name in SUFFIX}
    assert len(SUFFIX) == 36 and len(pairs) == 18
    assert SUFFIX["eyeLookInLeft"] == "eyeLookIn_L" and "mouthLeft" not in SUFFIX and "jawRight" not in SUFFIX


def test_both_spellings_of_the_same_shapes():
    names = ("browInnerUp_L", "jawLeft", "browInnerUp_R", "eyeBlink_L", "mouthSmileRight", "smile", "own_L")
    assert arkit_shapes(names) == [
        ("browInnerUp", [0, 2]),
        ("jawLeft", [1]),
        ("eyeBlinkLeft", [3]),
        ("mouthSmileRight", [4]),
        ("smile", [5]),
        ("ownLeft", [6]),
    ]
    suffix = [name for name, _ in arkit_shapes(names, "suffix")]
    assert suffix == ["browInnerUp", "jawLeft", "eyeBlink_L", "mouthSmile_R", "smile", "own_L"]


def test_generic_has_all_52():
    model = load_model("generic")
    for spelling in ("apple", "suffix"):
        names = [morph.name for morph in morphs_of(model, spelling)]
        assert len(names) == 52 and missing_of_arkit(names) == [] and names[-1] == "tongueOut"
    assert missing_of_arkit(names[:-1]) == ["tongueOut"]
    assert sorted(morph.name for morph in morphs_of(model)) == sorted(ARKIT)
