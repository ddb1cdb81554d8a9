"""No folder of the package imports one that docs/architecture.md names below it, and no files import each
other in a circle."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = re.search(r"```text\n(.*?)```", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.S)[1]
ORDER = [line.split()[0] for line in LAYERS.splitlines()]
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "fitkit").rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
# Imports that may point down: `save` and `_repr_html_` of a result are what a user calls, and writing is what
# export/ is for;
# the landmarks of a mesh that says nothing of them are found in pictures of it.
ALLOWED = {
    ("fitkit.models.formats.landmarks", "fitkit.observe.landmarks.builtin"),
    ("fitkit.models.formats.landmarks", "fitkit.render.shading"),
    ("fitkit.fitting.result", "fitkit.export.folder"),
    ("fitkit.fitting.result", "fitkit.export.pages.notebook"),
    ("fitkit.fitting.predicted_maps", "fitkit.export.maps"),
}


def imports(path):
    """Modules of the package that a file imports: anywhere in it, also in functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected the full name of a module"
            whole = (f"{node.module}.{a.name}" for a in node.names)
            yield from (name if name in MODULES else node.module for name in whole if node.module in MODULES)


EDGES = {name: {i for i in imports(path) if (name, i) not in ALLOWED} for name, path in MODULES.items()}


def test_every_folder_is_a_layer():
    assert {name.split(".")[1] for name in MODULES if "." in name} - {"__main__", "_moved"} == set(ORDER)


def test_imports_point_to_layers_above():
    def layer(name):
        return ORDER.index(name.split(".")[1]) if name.split(".")[1:2] and name.split(".")[1] in ORDER else -1

    down = [f"{a} imports {b}" for a in EDGES if layer(a) >= 0 for b in EDGES[a] if layer(b) > layer(a)]
    assert not down


def test_no_files_import_each_other():
    try:
        TopologicalSorter(EDGES).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_what_is_allowed_is_needed():
    assert all(b in set(imports(MODULES[a])) for a, b in ALLOWED)
