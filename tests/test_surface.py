"""What a user sees first: the names, the version, a cheap import, the wheel."""

import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("diffusers", "gradio", "numpy", "torch", "transformers")


def test_public_names_are_sorted_and_all_importable() -> None:
    import pixeldance

    assert pixeldance.__all__ == sorted(set(pixeldance.__all__))
    for name in pixeldance.__all__:
        assert getattr(pixeldance, name) is not None


def test_every_error_of_the_package_is_exported() -> None:
    import pixeldance
    from pixeldance import errors

    tree = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert tree <= set(pixeldance.__all__)


def test_unknown_name_is_an_attribute_error_that_names_it() -> None:
    import pixeldance

    with pytest.raises(AttributeError, match="'pixeldance' has no attribute 'laod'"):
        pixeldance.laod  # noqa: B018


def test_version_is_the_installed_one() -> None:
    import pixeldance

    assert pixeldance.__version__ == version("pixeldance")


@pytest.mark.parametrize(
    "module",
    ["pixeldance", "pixeldance.errors", "pixeldance.geometry", "pixeldance.request"],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    heavy = HEAVY if module != "pixeldance.request" else tuple(set(HEAVY) - {"numpy"})
    code = f"import sys, {module}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_two_ways_to_start_the_command_line_agree() -> None:
    script = [str(Path(sys.executable).with_name("pixeldance"))]
    outputs = [
        subprocess.run([*start, "--help"], capture_output=True, text=True, check=True).stdout
        for start in (script, [sys.executable, "-m", "pixeldance"])
    ]
    assert "generate" in outputs[0]
    assert outputs[0].split() == outputs[1].split()


def test_every_pin_satisfies_the_declared_dependencies() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    pins = {canonicalize_name(name): pin for name, pin in pins.items()}
    for requirement in (Requirement(text) for group in declared for text in group):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


@pytest.mark.slow
def test_wheel_holds_the_package_its_data_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("pixeldance-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"pixeldance/py.typed", "pixeldance/cli/__init__.py"} <= names
    for folder, inside in (
        (ROOT / "configs", "pixeldance/configs"),
        (ROOT / "weights" / "pixeldance-mini", "pixeldance/weights/pixeldance-mini"),
        (ROOT / "pixeldance" / "examples", "pixeldance/examples"),
    ):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files, f"{folder} is empty"
        assert {f"{inside}/{path.relative_to(folder).as_posix()}" for path in files} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pixeldance"}
