"""Imports point one way: this table is the rule, the test walks every import."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pixeldance"

BASE = {"_fields", "errors", "geometry", "pictures", "request"}
PARTS = {"diffusion", "models", "video"}
PIPELINE = BASE | PARTS
PIPELINE |= {"_pipeline_inputs", "backbones", "instructions", "parallel", "pipeline"}
ALLOWED = {
    **dict.fromkeys(BASE, BASE),
    "ops": {"errors"},
    **dict.fromkeys(PARTS, BASE | PARTS),
    "models": BASE | PARTS | {"ops"},
    "instructions": BASE | PARTS,
    "_pipeline_inputs": BASE,
    "parallel": BASE | PARTS,
    "backbones": BASE | PARTS | {"_pipeline_inputs", "instructions", "parallel"},
    "pipeline": PIPELINE - {"pipeline"},
    "api": PIPELINE | {"ops"},
    "stories": PIPELINE | {"api"},
    "worlds": BASE | PARTS | {"instructions"},
    "training": BASE | PARTS | {"instructions", "worlds"},
    "finishing": BASE | PARTS,
    "evaluation": PIPELINE | {"api", "finishing", "worlds", "training"},
    "cli": PIPELINE
    | {
        "api",
        "batch",
        "evaluation",
        "finishing",
        "jobs",
        "server",
        "stories",
        "training",
        "worlds",
    },
    "__main__": {"cli"},
    "batch": PIPELINE | {"api"},
    "jobs": PIPELINE | {"api", "stories"},
    "server": PIPELINE | {"api", "jobs", "evaluation", "stories"},
}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert part in ALLOWED, f"add {part!r} to the table: what may it import?"
    known = {entry.stem for entry in PACKAGE.iterdir()} - {"__init__"}
    names = (name.split(".") for name in imported_modules(path))
    used = {name[1] for name in names if name[0] == "pixeldance" and len(name) > 1} & known
    allowed = ALLOWED[part] | {part}
    if path.stem == "__main__":  # starts its own part, or the command line with a command
        allowed |= ALLOWED["__main__"]
    assert used <= allowed, f"may not import {used - allowed}"


def test_no_file_needs_torchvision() -> None:
    users = [p.name for p in FILES if any(m.startswith("torchvision") for m in imported_modules(p))]
    assert users == []
