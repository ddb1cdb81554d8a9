import numpy as np
import torch

from fitkit.energies import masks
from fitkit.observe.face_parts import HEAD, MIRRORED_PARTS, PARSE, PARTS, TEN, numbers, ten


def test_the_ten_come_first_and_stay_themselves():
    assert PARTS[: len(PARSE)] == PARSE == masks.PARSE
    assert list(TEN[: len(PARSE)]) == list(range(len(PARSE)))
    assert PARSE[TEN[PARTS.index("beard")]] == "skin"
    assert ten(torch.tensor([[3, 10, 11]])).tolist() == [[3, 0, 1]]
    assert all(
        PARSE[TEN[PARTS.index(n)]] == "background" for n in ("hair", "glasses", "neck", "ears", "clothes")
    )


def test_a_mirror_swaps_the_sides_of_the_subject():
    np.testing.assert_array_equal(MIRRORED_PARTS[MIRRORED_PARTS], np.arange(len(PARTS)))
    swapped = {PARTS[i] for i in np.flatnonzero(MIRRORED_PARTS != np.arange(len(PARTS)))}
    assert swapped == {"left_brow", "right_brow", "left_eye", "right_eye"}
    assert PARTS[MIRRORED_PARTS[PARTS.index("left_eye")]] == "right_eye"


def test_the_head_is_what_a_face_model_has():
    assert not {"background", "hair", "glasses", "occluder", "clothes"} & set(HEAD)
    assert numbers(("skin", "hair")) == (1, 10)
