"""Every code block of the README and of docs/ runs, in the order of the page."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = ROOT / "pixeldance" / "examples"
TIMEOUT_S = 300


def run_shell(example: Example) -> str | None:
    """Run a block of shell commands; those of pixeldance without starting Python for each."""
    source = str(example.parsed)
    commands = [line for line in source.replace("\\\n", " ").splitlines() if line.strip()]
    if all(re.fullmatch(r"pixeldance [^|<>&;$`]*", command) for command in commands):
        for command in commands:
            run_pixeldance(shlex.split(command, comments=True)[1:])
        return None
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", source],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return None if done.returncode == 0 else f"exit {done.returncode}: {done.stderr[-2000:]}"


def run_pixeldance(arguments: list[str]) -> None:
    from pixeldance.cli import app

    with pytest.raises(SystemExit) as stopped:
        app(arguments)
    assert stopped.value.code in (0, None), f"pixeldance {shlex.join(arguments)} failed"


SYBIL = Sybil(parsers=[PythonCodeBlockParser(), CodeBlockParser("bash", run_shell)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("first.png", "last.png"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    document: Document = SYBIL.parse(page)
    document.namespace["__name__"] = "__main__"
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text)
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert missing == []


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    names = [page.name for page in PAGES if page.parent.name == "docs" and page.name != "README.md"]
    assert [name for name in names if f"]({name})" not in index] == []
