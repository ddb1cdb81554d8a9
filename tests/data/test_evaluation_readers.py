"""Readers of public data sets on tiny copies of their folders, and what they say when something is
missing."""

import layouts
import numpy as np
import pytest
import scipy.io
from PIL import Image

from fitkit.data import (
    aflw2000,
    bosphorus,
    bu3dfe,
    facescape,
    facewarehouse,
    florence_renders,
    micc,
    now,
    pixel_face,
    realy,
)
from fitkit.data.samples import read_points
from fitkit.errors import InputError
from fitkit.io.images import read_image

READERS = {  # name -> (reader, data set, ids, groups, photos of the first sample)
    "now": (
        now.now_samples,
        now.NOW,
        ["FaMoS_1/multiview_neutral/IMG_0001", "FaMoS_1/selfie/IMG_0001"],
        ["multiview_neutral", "selfie"],
        1,
    ),
    "micc": (
        micc.micc_samples,
        micc.MICC,
        ["subject_01/indoor-cooperative", "subject_01/PTZ-indoor"],
        list(micc.SEQUENCES),
        3,
    ),
    "facescape_wild": (facescape.wild_samples, facescape.FACESCAPE, ["399"], ["yaw 60-90"], 1),
    "facescape_lab": (
        facescape.lab_samples,
        facescape.FACESCAPE,
        ["00_0_00", "00_0_01", "00_0_02"],
        ["focal 1200, 0 deg"] + ["focal 1200, 30 deg"] * 2,
        1,
    ),
    "pixel_face": (pixel_face.pixel_face_samples, pixel_face.PIXEL_FACE, ["00001/01"], ["01"], 3),
    "bosphorus": (
        bosphorus.bosphorus_samples,
        bosphorus.BOSPHORUS,
        ["bs000_E_HAPPY_0", "bs000_N_N_0"],
        ["expression", "neutral"],
        1,
    ),
    "bu3dfe": (bu3dfe.bu3dfe_samples, bu3dfe.BU3DFE, ["F0001_HA01WH", "F0001_NE00WH"], ["HA", "NE"], 1),
    "florence_renders": (
        florence_renders.florence_render_samples,
        florence_renders.RENDERS,
        ["subject_01/00", "subject_01/10"],
        ["yaw 60-90", "yaw 0-30"],
        1,
    ),
    "aflw2000": (
        aflw2000.aflw2000_samples,
        aflw2000.AFLW2000,
        ["image00000", "image00001", "image00002"],
        ["yaw 0-30", "yaw 30-60", "yaw 60-90"],
        1,
    ),
    "facewarehouse": (
        facewarehouse.facewarehouse_samples,
        facewarehouse.FACEWAREHOUSE,
        ["Tester_3/pose_0", "Tester_3/pose_1"],
        ["Tester_3"] * 2,
        1,
    ),
    "realy": (realy.realy_samples, realy.REALY, ["1", "2"], ["", ""], 1),
}


@pytest.fixture(scope="module")
def anna():
    return layouts.person(frontal=False)


@pytest.fixture
def folder(request, anna, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    return getattr(layouts, request.param)(root, anna)


@pytest.mark.parametrize("folder, name", [(n, n) for n in READERS], indirect=["folder"], ids=list(READERS))
def test_samples_photos_and_truth(folder, name):
    reader, _, ids, groups, photos = READERS[name]
    samples = reader(folder)
    assert [s.id for s in samples] == ids and [s.group for s in samples] == groups
    subject, truth = samples[0].subject(), samples[0].truth()
    assert len(subject.views) == photos and subject.views[0].image.shape == (160, 160, 3)
    assert (truth is None) == (name == "realy")


@pytest.mark.parametrize("name", list(READERS))
def test_missing_data_is_told_with_the_page_to_apply_at(name, tmp_path):
    reader, data_set, *_ = READERS[name]
    with pytest.raises(InputError) as caught:
        reader(tmp_path / "nowhere")
    text = str(caught.value)
    assert "no such folder" in text and all(
        part in text for part in (data_set.title, data_set.page, data_set.terms, data_set.layout)
    )
    assert data_set.page.startswith("http") and "\n" not in text
    with pytest.raises(InputError, match="not shipped"):
        reader(tmp_path)  # empty


@pytest.mark.parametrize(
    "folder, remove, message",
    [
        (
            "now",
            "scans/FaMoS_1/natural_head.obj",
            r"no scan of FaMoS_1 \(public for the validation subjects only\)",
        ),
        ("now", "scans_lmks_onlypp/FaMoS_1/natural_head_picked_points.pp", "no landmarks of FaMoS_1"),
        ("micc", "subject_01/frontal1_points.txt", "no frontal1 or frontal2 scan with its picked points"),
        ("facescape_wild", "predef/wild_rotations.npy", "predef/wild_rotations.npy cannot be read"),
        ("facescape_wild", "wild_img/399.jpg", "no picture 399"),
        ("pixel_face", "val/00001/01/Images/fusion/mesh.obj", "no mesh in fusion/"),
        ("bu3dfe", "F0001/F0001_HA01WH_F3D.bnd", "no landmarks F0001_HA01WH.bnd"),
        ("bu3dfe", "F0001/F0001_HA01WH_F2D.bmp", "no picture F0001_HA01WH_F2D.bmp"),
        ("florence_renders", "subject_01/scan_points.txt", "no scan_points.txt"),
        ("facewarehouse", "Tester_3/TrainingPose/pose_0.png", "no picture pose_0"),
    ],
    indirect=["folder"],
)
def test_missing_files_are_named(request, folder, remove, message):
    (folder / remove).unlink()
    reader = READERS[request.node.callspec.id.split("-")[0]][0]
    with pytest.raises(InputError, match=message):
        sample = reader(folder)[0]
        sample.truth()
        sample.subject()


@pytest.mark.parametrize("folder", ["now"], indirect=True)
def test_now_list_and_challenges(folder):
    assert len(now.now_samples(folder, ("selfie",))) == 1
    (folder / "imagepathsvalidation.txt").unlink()
    assert len(now.now_samples(folder)) == 2  # every photo of a subject with a scan
    with pytest.raises(InputError, match="NoW challenges: expected some of .*; got 'selfies'"):
        now.now_samples(folder, ("selfies",))
    (folder / "imagepathsvalidation.txt").write_text("a/../../secret.jpg\n")
    with pytest.raises(
        InputError, match="expected lines SUBJECT/CHALLENGE/IMAGE.jpg, got 'a/../../secret.jpg'"
    ):
        now.now_samples(folder)


@pytest.mark.parametrize("folder", ["micc"], indirect=True)
def test_micc_frames_and_flawed_scans(folder):
    assert not any(s.id.startswith("subject_02") for s in micc.micc_samples(folder))
    (folder / "subject_01" / "PTZ-indoor" / "triplet.txt").write_text("frame2\nframe0.png\n")
    assert [v.name for v in micc.micc_samples(folder)[1].subject().views] == ["frame2", "frame0"]
    (folder / "subject_01" / "PTZ-indoor" / "triplet.txt").write_text("frame9\n")
    with pytest.raises(InputError, match="no frame 'frame9' beside it"):
        micc.micc_samples(folder)[1].subject()
    assert [v.name for v in micc.micc_samples(folder, frames=2)[0].subject().views] == ["frame0", "frame2"]


@pytest.mark.parametrize("folder", ["facescape_lab"], indirect=True)
def test_lab_views_together_have_cameras(folder, anna):
    sample = facescape.lab_samples(folder, [[0, 2]])[0]
    views = sample.subject().views
    assert (
        sample.id == "00_0_00+02"
        and len(views) == 2
        and np.allclose(views[1].camera.t, anna.result.state.pose.translation[2])
    )
    assert np.allclose(views[0].camera.K, anna.result.state.camera.matrix()[0])
    assert (
        facescape.lab_samples(folder)[0].subject().views[0].camera.R is None
    )  # one picture says nothing of the size
    np.testing.assert_allclose(sample.truth().vertices, anna.posed(), atol=1e-3)
    (folder / "lab_cam" / "00_0_00.json").write_text("[[1, 2], [3]]")
    with pytest.raises(InputError, match=r"00_0_00.json: expected K \[3, 3\] and Rt \[3, 4\]"):
        sample.truth()
    (folder / "lab_cam" / "00_0_00.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot be read as \[K, Rt\]"):
        sample.truth()


@pytest.mark.parametrize("folder", ["pixel_face"], indirect=True)
def test_photos_that_lie_on_their_side_are_put_upright(folder, anna):
    views = pixel_face.pixel_face_samples(folder)[0].subject().views
    assert [v.name for v in views] == ["left", "front", "right"]
    assert np.abs(views[1].image.astype(int) - anna.result.subject.views[1].image).mean() < 4  # JPEG
    layouts.Person(anna.result, anna.scan, anna.points).mesh(
        folder / "val" / "00001" / "01" / "Images" / "fusion" / "mesh.obj"
    )
    front = pixel_face.pixel_face_samples(folder, views=("front",))[0].subject().views
    assert [v.name for v in front] == ["front"] and np.array_equal(front[0].image, views[1].image)
    with pytest.raises(InputError, match="views: expected some of left, front, right, got middle"):
        pixel_face.pixel_face_samples(folder, views=("middle",))
    with pytest.raises(
        InputError, match="expected the topology of the release, at least 14066 vertices, got 315"
    ):
        pixel_face.pixel_face_samples(folder)[0].truth()


@pytest.mark.parametrize("folder", ["bosphorus"], indirect=True)
def test_bosphorus_pictures_and_files(folder, anna):
    neutral = bosphorus.bosphorus_samples(folder)[1]
    views = neutral.subject().views
    assert [v.name for v in views] == ["front", "right", "left"] and np.array_equal(
        views[2].image, views[1].image[:, ::-1]
    )
    truth = neutral.truth()
    away = np.linalg.norm(truth.points - anna.result.landmarks3d.numpy()[layouts.SEVEN], axis=1)
    assert away.max() < 1e-4 and len(truth.vertices) > 1000
    (folder / "bs000" / "bs000_N_N_0.bnt").write_bytes(b"\0" * 40)
    with pytest.raises(InputError, match="not a Bosphorus range image"):
        neutral.truth()
    (folder / "bs000" / "bs000_E_HAPPY_0.lm3").write_text("# nothing\n")
    with pytest.raises(InputError, match="no landmarks in it"):
        bosphorus.bosphorus_samples(folder)[0].truth()
    (folder / "bs000" / "bs000_E_HAPPY_0.lm3").write_text("Nose tip\n1 2 3\n")
    with pytest.raises(
        InputError, match="landmark 'outer eye corner' is missing; the face of this scan may be covered"
    ):
        bosphorus.bosphorus_samples(folder)[0].truth()


@pytest.mark.parametrize("folder", ["bosphorus"], indirect=True)
def test_the_angle_of_one_side_of_bosphorus_varies(folder):
    """The other picture stays that of 45 degrees."""
    picture = read_image(folder / "bs000" / "bs000_YR_R45_0.png")[0]
    for angle in bosphorus.RIGHT_ANGLES[:3]:
        Image.fromarray(np.full_like(picture, angle)).save(folder / "bs000" / f"bs000_YR_R{angle}_0.png")

    def right(**options):
        views = bosphorus.bosphorus_samples(folder, **options)[1].subject().views
        assert [v.name for v in views] == ["front", "right", "left"]
        assert np.array_equal(views[2].image, picture[:, ::-1])
        return views[1].image

    assert np.array_equal(right(), picture) and np.array_equal(right(right=45), picture)
    assert [int(right(right=a).max()) for a in (10, 20, 30)] == [10, 20, 30]
    drawn = [bosphorus._drawn(f"bs{n:03d}_N_N_0") for n in range(400)]
    assert all(80 <= drawn.count(a) <= 120 for a in bosphorus.RIGHT_ANGLES)
    chosen = bosphorus._drawn("bs000_N_N_0")
    assert np.array_equal(right(right="random"), right(right=chosen))


@pytest.mark.parametrize("folder", ["bu3dfe"], indirect=True)
def test_bu3dfe_files(folder):
    path = folder / "F0001" / "F0001_HA01WH_F3D.wrl"
    vertices, triangles = bu3dfe.read_vrml(path)
    assert vertices.shape == (315, 3) and triangles.shape == (560, 3)
    path.write_text("point [0 0 0, 1 0 0, 1 1 0, 0 1 0] coordIndex [0 1 2 3 -1]")
    assert bu3dfe.read_vrml(path)[1].tolist() == [[0, 1, 2], [0, 2, 3]]  # a fan
    path.write_text("point [0 0 0] coordIndex [0 1 2 -1]")
    with pytest.raises(InputError, match="not a readable VRML mesh .*indices do not belong"):
        bu3dfe.read_vrml(path)
    marks = folder / "F0001" / "F0001_HA01WH_F3D.bnd"
    np.savetxt(marks, np.zeros((82, 4)))
    with pytest.raises(InputError, match="expected 83 points, got 82"):
        bu3dfe.read_bnd(marks)
    marks.write_text("a b")
    with pytest.raises(InputError, match="cannot be read as lines"):
        bu3dfe.read_bnd(marks)


@pytest.mark.parametrize("folder", ["aflw2000"], indirect=True)
def test_broken_labels_of_aflw(folder):
    scipy.io.savemat(folder / "image00001.mat", {"pt3d_68": np.zeros((3, 21)), "Pose_Para": np.zeros((1, 7))})
    with pytest.raises(InputError, match=r"image00001.mat: pt3d_68: expected \[3, 68\], got \[3, 21\]"):
        aflw2000.aflw2000_samples(folder)
    (folder / "image00001.mat").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as labels of AFLW2000-3D"):
        aflw2000.aflw2000_samples(folder)


@pytest.mark.parametrize("folder", ["facewarehouse"], indirect=True)
def test_several_photos_of_one_person(folder):
    sample = facewarehouse.facewarehouse_samples(folder, views=2)[1]
    assert [v.name for v in sample.subject().views] == ["pose_1", "pose_0"]
    with pytest.raises(InputError, match="of Tester_99"):
        facewarehouse.facewarehouse_samples(folder, ("Tester_99",))


def test_points_from_files(tmp_path):
    points = np.arange(21.0).reshape(7, 3)
    np.save(tmp_path / "a.npy", points)
    np.savetxt(tmp_path / "a.txt", points)
    for name in ("a.npy", "a.txt"):
        np.testing.assert_allclose(read_points(tmp_path / name, 7), points)
    with pytest.raises(
        InputError, match=r"a.txt: expected 8 points \[8, 3\] with finite numbers, .* got \[7, 3\]"
    ):
        read_points(tmp_path / "a.txt", 8)
    (tmp_path / "b.txt").write_text("x y z\n")
    with pytest.raises(InputError, match="cannot be read as 7 points 'x y z'"):
        read_points(tmp_path / "b.txt", 7)
    points[3] = np.nan  # missing
    np.savetxt(tmp_path / "d.txt", points)
    np.testing.assert_array_equal(read_points(tmp_path / "d.txt", 7), points)
    points[3, 1] = np.inf
    np.save(tmp_path / "d.npy", points)
    with pytest.raises(InputError, match="finite numbers, or nan for a point that is missing, got"):
        read_points(tmp_path / "d.npy", 7)
    np.save(tmp_path / "c.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="c.npy: cannot be read"):
        read_points(tmp_path / "c.npy", 7)
