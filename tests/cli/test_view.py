import json
import shutil
import webbrowser
from dataclasses import replace

import pytest
from helpers import tiny_result
from pages import Page

from fitkit.cli import view


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A subject folder with its result, and a batch that holds the same one."""
    place = tmp_path_factory.mktemp("view")
    result = tiny_result(size=96)
    replace(result, subject=replace(result.subject, name="anna")).save(place / "anna" / "fitkit", light=True)
    shutil.copytree(place / "anna" / "fitkit", place / "out" / "anna")
    (place / "out" / "batch.json").write_text(json.dumps({"subjects": [{"subject": "anna", "status": "ok"}]}))
    return place


@pytest.fixture
def opened(monkeypatch):
    """What a browser was asked to open; it is there."""
    addresses = []
    monkeypatch.setattr(view, "has_screen", lambda: True)
    monkeypatch.setattr(webbrowser, "open", lambda address: addresses.append(address) or True)
    return addresses


@pytest.mark.parametrize(
    ("given", "page"), [("anna/fitkit", "anna/fitkit"), ("anna", "anna/fitkit"), ("out", "out")]
)
def test_the_page_of_a_result_or_a_batch_is_opened(run, results, opened, given, page):
    done = run("view", results / given)
    path = results / page / "report.html"
    assert done.exit_code == 0 and done.output == f"{path}\n" and opened == [path.resolve().as_uri()]
    assert ("batch" in path.read_text()[:2000].partition("<title>")[2][:40]) == (given == "out")


def test_the_page_can_be_elsewhere_and_stay_closed(run, results, opened, tmp_path):
    done = run("view", results / "anna" / "fitkit", "--no-open", "-o", tmp_path / "page.html")
    assert done.output == f"{tmp_path / 'page.html'}\n" and opened == []
    assert "<title>anna - fitkit</title>" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("screen", [False, True])
def test_without_a_browser_the_path_is_said(run, results, monkeypatch, screen):
    monkeypatch.setattr(view, "has_screen", lambda: screen)
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    done = run("view", results / "out")
    assert done.exit_code == 0
    assert done.output.endswith("report.html\nnote: no browser was found here; open the page in one\n")


def test_a_screen_is_where_a_window_can_open(monkeypatch):
    monkeypatch.setattr(view.sys, "platform", "linux")
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not view.has_screen()
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        with monkeypatch.context() as set_one:
            set_one.setenv(name, ":0")
            assert view.has_screen()
    monkeypatch.setattr(view.sys, "platform", "darwin")
    assert view.has_screen()


def test_refusals(run, results, tmp_path):
    done = run("view", tmp_path)
    assert done.exit_code == 1 and (
        f"{tmp_path}: expected the folder of a result, with metrics.json and parameters.npz, or of a batch, "
        "with batch.json" in done.output
    )
    done = run("view", results / "out", "-o", tmp_path)
    assert done.exit_code == 2 and "is a directory" in done.output


def test_a_batch_ends_with_its_page(run, tmp_path):
    (tmp_path / "people" / "ben").mkdir(parents=True)
    (tmp_path / "people" / "ben" / "photo.png").write_bytes(b"no picture")
    arguments = ("batch", tmp_path / "people", "-o", tmp_path / "out", "--light")
    done = run(*arguments)
    page = tmp_path / "out" / "report.html"
    assert done.exit_code == 1 and f"{'result':10}{page}\n" in done.output
    (row,) = Page.read(page).data("rows")
    assert row["subject"] == "ben" and row["status"] == "error" and "photo.png" in row["message"]
    page.unlink()
    page.mkdir()
    done = run(*arguments, "--resume")
    assert f"warning: no page of the batch: {page}: expected a file" in done.output
    assert f"{'result':10}{tmp_path / 'out' / 'batch.json'}\n" in done.output
