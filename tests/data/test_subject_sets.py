"""Subjects of every layout through one registry, tables of photos, and mirrors of landmark files."""

import json
import pickle

import cv2
import layouts
import numpy as np
import pytest
from helpers import write_pts
from PIL import Image
from training_layouts import lp_source, pie_tree

from fitkit.data.landmark_mirror import with_mirrored_landmarks
from fitkit.data.subject_sets import KINDS, READERS, SubjectSource, subject_set, subjects_of
from fitkit.errors import InputError
from fitkit.io.manifest import manifest_subject, read_manifest
from fitkit.io.subject import load_subject

POINTS = np.random.default_rng(0).uniform(5, 30, (68, 2))
MAKERS = {
    "aflw2000": layouts.aflw2000,
    "bosphorus": layouts.bosphorus,
    "bu3dfe": layouts.bu3dfe,
    "facescape-lab": layouts.facescape_lab,
    "facescape-wild": layouts.facescape_wild,
    "facewarehouse": layouts.facewarehouse,
    "florence-renders": layouts.florence_renders,
    "micc": layouts.micc,
    "now": layouts.now,
    "pixel-face": layouts.pixel_face,
    "realy": layouts.realy,
}
# Kind -> options, names of its subjects, photos of the first one.
EXPECTED = {
    "aflw2000": ((), ["image00000", "image00001", "image00002"], 1),
    "bosphorus": ((), ["bs000_E_HAPPY_0", "bs000_N_N_0"], 1),
    "bu3dfe": ((), ["F0001_HA01WH", "F0001_NE00WH"], 1),
    "facescape-lab": (("views=[[0, 1, 2]]",), ["00_0_00+01+02"], 3),
    "facescape-wild": ((), ["399"], 1),
    "facewarehouse": (("views=2", "identities=[]"), ["Tester_3/pose_0", "Tester_3/pose_1"], 2),
    "florence-renders": ((), ["subject_01/00", "subject_01/10"], 1),
    "micc": (("frames=2", "sequences=[PTZ-indoor]"), ["subject_01/PTZ-indoor"], 2),
    "now": (("challenges=[selfie]",), ["FaMoS_1/selfie/IMG_0001"], 1),
    "pixel-face": ((), ["00001/01"], 3),
    "realy": ((), ["1", "2"], 1),
}


@pytest.fixture(scope="module")
def person():
    return layouts.person(frontal=True)


def test_every_reader_is_tried():
    assert set(EXPECTED) == set(MAKERS) == set(READERS)
    assert set(KINDS) - set(READERS) == {"folders", "manifest", "multipie", "nersemble", "300wlp", "300vw"}
    assert all(subject_set(kind).doc for kind in KINDS)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_subjects_of_a_public_data_set(kind, person, tmp_path):
    options, names, views = EXPECTED[kind]
    MAKERS[kind](tmp_path / "data", person)
    entries = SubjectSource(f"{kind}:{tmp_path / 'data'}", options).entries()
    assert [e.name for e in entries] == names == [e.photos for e in entries]
    subject = pickle.loads(pickle.dumps(entries[0].load))()  # workers get it so
    assert len(subject.views) == views and subject.views[0].image.shape[2] == 3


def test_what_is_wrong_with_a_source(tmp_path):
    for data, options, message in (
        (
            "mutlipie:x",
            (),
            "mutlipie:x: no such folder, and no kind of data set 'mutlipie'; did you mean 'multipie'",
        ),
        ("aa:bb", (), "no kind of data set 'aa'; kinds: 300vw, 300wlp, aflw2000, "),
        (f"micc:{tmp_path}", ("frmaes=3",), "micc: options: unknown key 'frmaes'; did you mean 'frames'"),
        (f"micc:{tmp_path}", ("frames=x",), "micc: options.frames: expected int, got 'x'"),
        (f"micc:{tmp_path}", (), "no SUBJECT/indoor-cooperative/ with frames; expected MICC Florence"),
        (f"multipie:{tmp_path}", (), "no folder sessionSS/multiview"),
        ("", (), "data '': expected a folder, a table of photos, or KIND:PATH"),
        ("folders:", (), "data 'folders:': expected a folder, a table of photos, or KIND:PATH"),
        (str(tmp_path / "none"), (), "none: no such folder; expected a folder of subject folders"),
    ):
        with pytest.raises(InputError, match=message):
            SubjectSource(data, options).entries()
    with pytest.raises(InputError, match="no kind of data set 'mic'; did you mean 'micc'"):
        subject_set("mic")
    with pytest.raises(InputError, match="marks: no such folder; expected landmark files as"):
        SubjectSource(str(tmp_path), (), str(tmp_path / "marks")).entries()


def test_names_that_differ_in_case_only(person, tmp_path):
    """Some file systems do not tell them apart."""
    person.photo(tmp_path / "a.png")
    (tmp_path / "list.jsonl").write_text(
        "".join(json.dumps({"subject": s, "photo": "a.png"}) + "\n" for s in ("Anna", "anna"))
    )
    with pytest.raises(InputError, match="several subjects are called 'anna'; rename one"):
        SubjectSource(str(tmp_path / "list.jsonl")).entries()


# ---- tables of photos ----


@pytest.fixture
def photos(person, tmp_path):
    """Photos of two people in two folders; of one, landmarks lie beside it."""
    for name, view, points in (("in/front", 0, True), ("in/left", 1, False), ("out/front", 2, False)):
        person.photo(tmp_path / f"{name}.png", view, points)
    return tmp_path


def test_a_table_of_photos(photos, person):
    points = person.result.landmarks.points.numpy()
    write_pts(photos / "marks.pts", points[1])
    mask = np.zeros((160, 160), np.uint8)
    mask[:, 40:] = 255
    Image.fromarray(mask).save(photos / "mask.png")
    K = person.result.state.camera.matrix()[1].tolist()
    (photos / "cameras.json").write_text(json.dumps({"left": {"K": K}}))
    (photos / "list.csv").write_text(
        "\ufeffphoto, subject, moment, landmarks, mask, camera\n"
        "in/front.png,town/ben,1,,,\n"
        "\n"
        "in/left.png,town/ben,1,marks.pts,mask.png,cameras.json\n"
        'out/front.png,"town/ben",,,,\n'
        "out/front.png,anna,,,,\n",
        encoding="utf-8",
    )
    people = dict(subjects_of(photos / "list.csv"))
    assert list(people) == ["town/ben", "anna"]
    ben = people["town/ben"]
    assert ben.name == "ben" and [v.name for v in ben.views] == ["in_front", "left", "out_front"]
    assert [v.moment for v in ben.views] == ["1", "1", ""]
    assert np.allclose(ben.views[0].landmarks[:, :2], points[0], atol=0.01)  # beside the photo
    assert np.allclose(ben.views[1].landmarks[:, :2], points[1], atol=0.01) and ben.views[2].landmarks is None
    assert (ben.views[1].mask == (mask > 0)).all() and ben.views[0].mask is None
    assert np.allclose(ben.views[1].camera.K, K) and ben.views[0].camera is None
    lines = [{"subject": s, "photo": p, "mask": None} for s, p in ((1, "in/front.png"), ("b", "in/left.png"))]
    (photos / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert [(n, [r.line for r in rows]) for n, rows in read_manifest(photos / "list.jsonl").items()] == [
        ("1", [1]),
        ("b", [2]),
    ]


def test_lenses_with_distortion_in_a_table(photos, person):
    """Landmarks and mask follow the photo."""
    K = person.result.state.camera.matrix()[0].tolist()
    camera = {"K": K, "distortion": [2.0, 0, 0, 0]}
    (photos / "in" / "cameras.json").write_text(json.dumps({"front.png": camera}))
    Image.fromarray(np.full((160, 160), 255, np.uint8)).save(photos / "mask.png")
    (photos / "list.csv").write_text(
        "subject,photo,camera,mask\nanna,in/front.png,in/cameras.json,mask.png\n", encoding="utf-8"
    )
    beside = load_subject(photos / "in").views[0]
    ((_, subject),) = subjects_of(photos / "list.csv")
    view = subject.views[0]
    assert (view.image == beside.image).all() and np.allclose(view.landmarks, beside.landmarks)
    assert view.mask.shape == (160, 160) and not view.mask.all()  # the border that the lens did not see


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "subject,foto\n", "line 1: columns: unknown key 'foto'; did you mean 'photo'"),
        ("a.csv", "subject,mask\n", "line 1: no column 'photo'; expected the columns subject, photo and, if"),
        ("a.csv", "subject,photo,photo\n", "line 1: a column occurs twice"),
        ("a.csv", "", "line 1: no column 'subject'"),
        ("a.csv", "subject,photo\n", "no photos in it"),
        ("a.csv", "subject,photo\na,b.png\na\n", "line 3: expected 2 entries as in the first line, got 1"),
        ("a.csv", "subject,photo\na,\n", "line 2: no photo; expected the columns"),
        ("a.csv", 'subject,photo\n"a,b.png\n', "line 2: not a line of a table .unexpected end of data.; exp"),
        ("a.csv", "subject,photo\na," + "b" * 200_000, "line 2: not a line of a table .field larger than"),
        ("a.csv", "subject,photo,\na,b.png,\n", "line 1: column 3 has no name; expected the columns"),
        ("a.csv", "subject,photo\n" + "a" * 5000 + ",b\n", "line 2: subject: expected text, got 'a"),
        ("a.jsonl", "\n{\n", "line 2: not a JSON object"),
        ("a.jsonl", "[1]\n", "line 1: expected a JSON object with subject and photo, got .1."),
        ("a.jsonl", '{"subjct": "a"}\n', "line 1: unknown key 'subjct'; did you mean 'subject'"),
        ("a.jsonl", '{"subject": "a", "photo": 3}\n', "line 1: photo: expected text, got 3"),
        ("a.jsonl", '{"subject": "a", "photo": "\\u0000"}\n', "line 1: photo: expected text, got"),
        ("a.jsonl", '{"photo": "a.png"}\n', "line 1: no subject; expected the columns"),
        ("a.jsonl", "[" * 9000 + "\n", "line 1: not a JSON object .lists or objects are nested deeper"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        SubjectSource(str(tmp_path / name)).entries()


@pytest.mark.parametrize(
    "line, message",
    [
        ("in/none.png,,,", "line 3: photo: .*none.png: no such photo"),
        ("in,,,", "line 3: photo: .*in: expected a photo, got a folder"),
        ("in/left.png,no.pts,,", "line 3: landmarks: no such file: .no.pts."),
        ("in/left.png,,no.png,", "line 3: mask: no such file"),
        ("in/left.png,,small.png,", "lines 2 to 3: .*small.png: a mask must have the size of its image"),
        ("in/left.png,,,other.json", "lines 2 to 3: .*other.json: no camera for .*left.png"),
        ("in/front.png,,,", "lines 2 to 3: image 0 and image 1 share the name"),
    ],
)
def test_what_is_wrong_with_the_files_of_a_table(photos, line, message):
    Image.fromarray(np.full((10, 10), 255, np.uint8)).save(photos / "small.png")
    (photos / "other.json").write_text(json.dumps({"right": {"K": np.eye(3).tolist()}}))
    path = photos / "a.csv"
    path.write_text(f"subject,photo,landmarks,mask,camera\nanna,in/front.png,,,\nanna,{line}\n")
    with pytest.raises(InputError, match=f"a.csv: {message}"):
        manifest_subject(path, read_manifest(path)["anna"])


# ---- training sets ----


def test_multi_pie(tmp_path):
    pie_tree(tmp_path / "pie")
    entries = SubjectSource(f"multipie:{tmp_path / 'pie'}", ("triplets=1",)).entries()
    subject = pickle.loads(pickle.dumps(entries[0].load))()
    assert subject.views[0].name == "05_1" and {v.moment for v in subject.views} == {"instant"}


def test_300w_lp(tmp_path):
    lp_source(tmp_path / "AFW", "face", [0.0, 40.0])
    entries = SubjectSource(f"300wlp:{tmp_path}", ("triplets=2", "flips=false")).entries()
    assert [e.name for e in entries] == ["face/AFW/0", "face/AFW/1"]
    subject = pickle.loads(pickle.dumps(entries[0].load))()
    # The side that is not there is the other one, mirrored.
    assert [v.name for v in subject.views] == ["face_0", "face_1_mirrored", "face_1"]
    left, right = subject.views[1:]
    assert (left.image == right.image[:, ::-1]).all() and left.landmarks is not None
    nose = 30
    assert left.landmarks[nose, 0] == pytest.approx(right.size[0] - 1 - right.landmarks[nose, 0], abs=1e-3)


def test_300_vw(tmp_path):
    """The points of a frame come with it: frame n is 10 n grey."""
    for place in ("001", "notes"):
        (tmp_path / place).mkdir()
    video = cv2.VideoWriter(str(tmp_path / "001" / "vid.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for number in range(1, 11):
        video.write(np.full((48, 64, 3), 10 * number, np.uint8))
        (tmp_path / "001" / "annot").mkdir(exist_ok=True)
        write_pts(tmp_path / "001" / "annot" / f"{number:06d}.pts", np.full((68, 2), number) + POINTS)
    video.release()
    ((name, load),) = [(e.name, e.load) for e in SubjectSource(f"300vw:{tmp_path}", ("frames=4",)).entries()]
    subject = pickle.loads(pickle.dumps(load))()
    assert name == "001" and [v.name for v in subject.views] == ["000001", "000004", "000007", "000010"]
    for view in subject.views:
        assert abs(view.image.mean() / 10 - int(view.name)) < 0.3
        assert np.allclose(view.landmarks[:, :2], POINTS + int(view.name), atol=0.01)
    (tmp_path / "001" / "vid.avi").write_bytes((tmp_path / "001" / "vid.avi").read_bytes()[:3000])
    with pytest.raises(
        InputError, match="vid.avi: (cannot be opened as a video|frame ., .* cannot be decoded)"
    ):
        load()
    with pytest.raises(InputError, match="no folder with vid.avi in it"):
        SubjectSource(f"300vw:{tmp_path / 'notes'}").entries()


# ---- mirrors of landmark files ----


def test_a_mirror_of_landmark_files(photos, person):
    points = person.result.landmarks.points.numpy()
    (photos / "marks" / "in").mkdir(parents=True)
    write_pts(photos / "marks" / "in" / "left.pts", points[1])
    entries = SubjectSource(str(photos), (), str(photos / "marks")).entries()
    subject = next(e for e in entries if e.name == "in").load()
    front, left = subject.views
    assert np.allclose(front.landmarks[:, :2], points[0], atol=0.01)  # its own stay
    assert np.allclose(left.landmarks[:, :2], points[1], atol=0.01)
    assert any("no landmark file in" in n and "front" in n for n in subject.notes)
    (photos / "marks" / "in" / "left.pts").write_text("broken")
    with pytest.raises(InputError, match=r"left.pts: not a readable landmark file"):
        with_mirrored_landmarks(load_subject(photos / "in"), photos, photos / "marks")
