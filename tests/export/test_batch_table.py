"""`fitkit.batch`: a data set from Python."""

import json
import shutil
import sys

import pytest

import fitkit
from fitkit.errors import FitkitError, InputError

FAST = ["stages.shape.solver.max_iterations=3", "stages.landmarks.solver.max_iterations=3"]


@pytest.fixture(scope="module")
def done(_rendered, tmp_path_factory):
    """A table of two people, of whom one has no photo that can be read, and its batch."""
    place = tmp_path_factory.mktemp("python")
    shutil.copytree(_rendered, place / "photos")
    rows = [{"subject": "town/anna", "photo": f"photos/view{i}.png", "moment": "m"} for i in (1, 2)]
    (place / "photos" / "bad.png").write_bytes(b"no picture")
    rows.append({"subject": "ben", "photo": "photos/bad.png"})
    (place / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = []
    table = fitkit.batch(
        place / "list.jsonl",
        place / "out",
        recipe="landmarks",
        overrides=FAST,
        light=True,
        progress=lambda text, share: told.append(share),
    )
    assert told == [0.0, 0.5, 1.0]
    return place, table


def test_a_table_whose_faces_are_read_when_asked_for(done):
    place, table = done
    assert [row.subject for row in table] == ["town/anna", "ben"] == table.columns()["subject"]
    assert (
        table[1].status == "error"
        and "list.jsonl: line 3: " in table[1].message
        and table[1].reason == "input"
    )
    ((row, result),) = table.results(status=("ok", "doubtful", "failed"))
    assert row is table[0] and [v.name for v in result.subject.views] == ["view1", "view2"]
    assert result.subject.views[0].image.shape == (192, 192, 3) and result.neutral.shape[1] == 3
    assert result.model is table.result(row).model  # loaded once
    bare = table.result(row, photos=False)
    assert bare.status == row.status and not bare.subject.views[0].has_photo
    assert list(table.results(status=("error",))) == []
    assert repr(table).startswith("BatchTable(2 subjects: ") and "1 error" in str(table)
    shown = table._repr_html_()
    assert "<th>subject</th>" in shown and "<td>town/anna</td>" in shown and "more</p>" not in shown


def test_a_batch_is_read_back(done):
    place, table = done
    again = fitkit.load_batch(place / "out")
    assert list(again) == list(table) and again.result(again[0]).status == table[0].status
    assert list(fitkit.load_batch(place / "out", place / "list.jsonl")) == list(table)
    with pytest.raises(InputError, match="holds no batch.json; expected the output of a batch"):
        fitkit.load_batch(place)
    other = fitkit.load_batch(place / "out", place / "photos")
    assert [r.reason for r in other] == ["missing"]


def test_names_that_are_no_html(done):
    place, table = done
    evil = type(table)([type(table[0])("<script>", "error", "a & b")] * 30, place)
    assert "<script>" not in evil._repr_html_() and "and 10 more" in evil._repr_html_()


def test_pandas(done):
    pandas = pytest.importorskip("pandas")
    frame = done[1].frame()
    assert isinstance(frame, pandas.DataFrame) and list(frame.subject) == ["town/anna", "ben"]
    assert frame.expected_mm.isna().tolist() == [False, True]


def test_refusals(done, tmp_path, monkeypatch):
    place, table = done
    for arguments, message in (
        ({"wrokers": 2}, "batch: unknown argument 'wrokers'; known: workers, batch_size"),
        ({"overrides": "a=1"}, "overrides: expected a list of 'key=value', got str"),
        ({"data_options": "a=1"}, "data_options: expected a list"),
        ({"shard": "0/2"}, "shard: expected I/N"),
        ({"recipe": fitkit.load_recipe("landmarks"), "model": "generic"}, "recipe given by name or path"),
        ({"progress": 3}, "progress: expected a function"),
        ({"workers": "2"}, "batch: workers: expected int, got '2'"),
        ({"timeout": "a"}, "batch: timeout: expected float"),
    ):
        with pytest.raises(InputError, match=message):
            fitkit.batch(place / "list.jsonl", tmp_path / "out", **arguments)
    with pytest.raises(InputError, match="data: expected a folder, a table of photos, or KIND:PATH, got int"):
        fitkit.batch(3, tmp_path / "out")
    with pytest.raises(InputError, match="output: expected a folder to write, got int"):
        fitkit.batch(place / "list.jsonl", 3)
    with pytest.raises(InputError, match="output: expected the folder of a batch, got int"):
        fitkit.load_batch(3)
    for status in ("ok", ["good"]):
        with pytest.raises(InputError, match="status: expected a list of ok, doubtful, failed, error; got"):
            list(table.results(status=status))
    source = fitkit.data.subject_sets.SubjectSource(str(place / "list.jsonl"))
    with pytest.raises(InputError, match="are part of a SubjectSource"):
        fitkit.batch(source, tmp_path / "out", data_options=["a=1"])
    with pytest.raises(InputError, match="no subject 'nobody' in it"):
        table.result(type(table[0])("nobody", "ok"))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FitkitError, match="a DataFrame needs pandas .*; pip install pandas, or use columns"):
        table.frame()


def test_subjects_one_after_the_other(done):
    place, _ = done
    people = fitkit.subjects_of(place / "list.jsonl")
    name, anna = next(people)
    assert name == "town/anna" and len(anna.views) == 2
    with pytest.raises(InputError, match="list.jsonl: line 3"):
        next(people)
