"""Content hash of the code that computes a result: a module and all that it imports, comments aside."""

from __future__ import annotations

import ast
import hashlib
import sys
from functools import cache
from pathlib import Path

from interp.system.paths import ROOT

#: Packages whose code is followed.
OURS = ("interp", "analyses")


@cache
def source_hash(module: str) -> str:
    """Content hash of the code that a module can run: its own, and all of the toolkit that it imports.

    module: its dotted name. An edited statement anywhere among them gives another hash, an edited comment or
    docstring the same. Of a module that is not the toolkit's the file alone is hashed ("" where it has none,
    as in a notebook).
    """
    if module.startswith("interp.analyses."):  # as it is installed
        module = module.removeprefix("interp.")
    path = _file(module)
    if path is None:
        other = getattr(sys.modules.get(module), "__file__", None)
        return hashlib.sha256(Path(other).read_bytes()).hexdigest()[:16] if other else ""
    codes: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is not None and name not in codes:
            codes[name], imported = _read(path, name)
            waiting += imported
    return hashlib.sha256(
        "\n".join(f"{name} {code}" for name, code in sorted(codes.items())).encode()
    ).hexdigest()[:16]


@cache
def _read(path: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """Content hash of a module's statements, and what it imports."""
    tree = ast.parse(path.read_bytes())
    imported = imports(tree, name, path.name == "__init__.py")
    return _code(tree), tuple(imported)


def imports(tree: ast.Module, name: str, package: bool) -> list[str]:
    """Names of modules, or of things in them, that a module imports.

    name: the module's own dotted name; package: whether it is a package's `__init__`.
    """
    inner = (name if package else name.rpartition(".")[0]).split(".")
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = inner[: len(inner) - node.level + 1] if node.level else []
            base = [*above, node.module] if node.module else above
            names += [".".join(base), *(".".join([*base, alias.name]) for alias in node.names)]
    return [imported for imported in names if imported]


def _file(name: str) -> Path | None:
    """The file of a module of the toolkit."""
    parts = name.split(".")
    if parts[0] not in OURS:
        return None
    installed = parts[0] == "analyses" and (ROOT / "interp" / "analyses").is_dir()
    at = (ROOT / "interp" if installed else ROOT).joinpath(*parts)
    return next(
        (path for path in (at / "__init__.py", at.with_name(f"{at.name}.py")) if path.is_file()), None
    )


def _code(tree: ast.Module) -> str:
    """Content hash of a module's statements, texts that stand alone (docstrings) left out."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [line for line in body if not _text(line)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _text(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )
