"""The names a researcher uses, whatever was imported before."""

import ast
import importlib
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import interp  # noqa: F401
from interp.moved import MOVED

PACKAGES = ("tasks", "prompts", "models", "stats", "environments", "checkpoints", "training")


def test_every_public_name_is_what_it_says_after_its_modules_are_imported():
    import interp.engine.capturing  # noqa: F401
    import interp.engine.decoding  # noqa: F401
    import interp.measures.conflicts  # noqa: F401

    for name in interp.__all__:
        assert callable(getattr(interp, name)) or name == "figures", name


def test_the_surface_is_listed_where_a_user_looks():
    assert {"patch", "capture", "Prompt", "Decision", "Environment", "Sweep"} <= {*dir(interp)}
    shown = pydoc.plain(pydoc.render_doc(interp))
    names = [name for name in interp.__all__ if name != "figures"]  # a module
    assert all(f"{name}(" in shown or f"class {name}" in shown for name in names)


def test_type_checkers_see_every_name():
    for package in ("", *PACKAGES):
        module = importlib.import_module(f"interp.{package}".rstrip("."))
        stub = Path(module.__file__).with_suffix(".pyi")
        declared = {
            name.asname for node in ast.parse(stub.read_text()).body for name in getattr(node, "names", ())
        }
        assert declared == {*module.__all__}
    assert Path(interp.__file__).with_name("py.typed").exists()


def test_the_package_imports_without_torch():
    code = "import sys, interp, interp.plots.behaviour, analyses.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_its_public_names(package):
    module = importlib.import_module(f"interp.{package}")
    assert module.__all__ and all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = module.nothing


def test_modules_that_moved_are_found_by_their_old_names_for_a_release():
    with pytest.warns(DeprecationWarning, match="interp.series is now interp.checkpoints.series"):
        sys.modules.pop("interp.series", None)
        from interp.series import CheckpointSeries
    assert CheckpointSeries is interp.CheckpointSeries
    for name, now in MOVED.items():
        found = importlib.import_module(f"interp.{name}")
        assert found is importlib.import_module(f"interp.{now}") and found.__spec__.name == f"interp.{now}"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("interp.nothing_of_this_name")
