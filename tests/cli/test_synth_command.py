from click.testing import CliRunner

from fitkit.cli.main import main
from fitkit.io.subject import load_subject


def run(*args):
    return CliRunner().invoke(main, ["synth", *map(str, args)])


def test_subjects_are_written_and_resumed(tmp_path):
    args = (
        tmp_path / "people",
        "--views",
        2,
        "--frames",
        2,
        "--size",
        48,
        "--seed",
        5,
        "--landmark-noise",
        0.5,
        "variation.yaw=30",
        "-q",
    )
    first = run(*args, "--subjects", 1)
    assert first.exit_code == 0 and "written: 1 subjects with 4 pictures each" in first.output
    assert run(*args, "--subjects", 2).exit_code == 1
    assert run(*args, "--subjects", 2, "--resume").exit_code == 0
    assert len(load_subject(tmp_path / "people" / "subject_00001").views) == 4


def test_mistakes_are_one_sentence(tmp_path):
    for args, message in (
        (("--subjects", 0), "expected at least one subject and one worker"),
        (("--recipe", "defualt"), "did you mean 'default'?"),
        (("variation.yaw",), "override 'variation.yaw': expected key=value"),
        (("--model", "genric"), "did you mean 'generic'?"),
    ):
        result = run(tmp_path / "out", *args)
        assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
