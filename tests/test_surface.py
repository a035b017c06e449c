"""The names a researcher uses, whatever was imported before."""

import subprocess
import sys

import interp  # noqa: F401


def test_every_public_name_is_what_it_says_after_its_modules_are_imported():
    import interp.engine.capturing  # noqa: F401
    import interp.engine.decoding  # noqa: F401
    import interp.measures.conflicts  # noqa: F401

    for name in interp.__all__:
        assert name == "__version__" or callable(getattr(interp, name)), name


def test_the_package_imports_without_torch():
    code = "import sys, interp, interp.plots.behaviour, analyses.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
