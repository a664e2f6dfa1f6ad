"""What is shipped: the wheel, the lock, the Makefile."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bitexp

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = {
    "runtime": PYPROJECT["project"]["dependencies"],
    **PYPROJECT["project"]["optional-dependencies"],
}
LOCK = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
}


UNLOCKED = ("ray", "peers")


def declared() -> list[Requirement]:
    """Everything that pyproject.toml asks for by itself, in all extras but those that the lock leaves out.

    Hydra's Ray launcher pulls Ray's dashboard and boto3, whose python-dateutil is an old one. The peers of
    the layer benchmark are measured where they are installed, and nothing else needs them.
    """
    extras = (lines for group, lines in DECLARED.items() if group not in UNLOCKED)
    requirements = [Requirement(line) for lines in extras for line in lines]
    return [r for r in requirements if r.name != "bitexp"]


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    (path,) = folder.glob("*.whl")
    assert path.name == f"bitexp-{bitexp.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def files(folder: str, pattern: str) -> set[str]:
    """Their paths below the folder; links to other folders are not followed."""
    return {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob(pattern)}


@pytest.mark.parametrize(
    ("source", "target", "pattern"),
    [
        ("conf", "bitexp/_conf", "*.yaml"),
        ("sweeps", "bitexp/_conf/sweeps", "*.yaml"),
        ("bitexp", "bitexp", "*.py"),
        ("bitexp", "bitexp", "README.md"),
    ],
)
def test_wheel_carries_every_file(wheel: zipfile.ZipFile, source: str, target: str, pattern: str) -> None:
    expected = files(source, pattern)
    assert expected
    assert {f"{target}/{name}" for name in expected} <= set(wheel.namelist())


def test_wheel_carries_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"bitexp", f"bitexp-{bitexp.__version__}.dist-info"}


def test_installed_wheel_composes(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """From a folder that is no checkout, with the config groups that the wheel carries."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    wheel.extractall(site)
    elsewhere.mkdir()
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import bitexp.__main__; print(bitexp.__file__, file=sys.stderr)\n"
        "sys.argv[1:] = ['+experiment=vit_ternary', '+sweeps=precisions', '--cfg', 'job']\n"
        "bitexp.__main__.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=elsewhere, capture_output=True, text=True)
    assert str(site) in done.stderr
    assert done.returncode == 0, done.stderr
    assert "ternary" in done.stdout


# the lock and what is declared


def test_every_import_is_declared() -> None:
    """What bitexp imports, it asks for itself: not only what others happen to bring along."""
    origin = importlib.metadata.packages_distributions()
    ours = {"bitexp", "hydra-plugins"}
    for group in DECLARED.keys() - {"test", "lint", "dev"}:
        ours |= {canonicalize_name(Requirement(line).name) for line in DECLARED[group]}
    for path in (ROOT / "bitexp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            else:
                continue
            for top in {m.partition(".")[0] for m in modules} - set(sys.stdlib_module_names):
                names = {canonicalize_name(name) for name in origin.get(top, [top])}
                assert names & ours, f"{path}: {top} is not declared"


def test_lock_pins_every_dependency() -> None:
    for requirement in declared():
        pinned = LOCK[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned, prereleases=True), requirement


def required(requirements: list[Requirement]) -> Iterator[str]:
    """The names of the requirements and of all they need, as installed here."""
    waiting, seen = list(requirements), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = ("", *sorted(requirement.extras))
        marker = requirement.marker
        if (name, extras) in seen or (marker and not marker.evaluate({"extra": ""})):
            continue
        seen.add((name, extras))
        yield name
        for line in importlib.metadata.requires(name) or []:
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras):
                need.marker = None
                waiting.append(need)


def test_lock_holds_what_is_needed_and_nothing_else() -> None:
    needed = {n for n in required(declared()) if not n.startswith(("nvidia-", "cuda-"))}
    assert needed <= LOCK.keys()
    if sys.platform == "linux" and sys.version_info[:2] == (3, 11):  # what the lock was made with
        assert LOCK.keys() == needed


@pytest.mark.parametrize("group", DECLARED)
def test_every_dependency_says_why(group: str) -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for dependency in DECLARED[group]:
        (line,) = (line for line in lines if line.lstrip().startswith(f'"{dependency}",'))
        assert re.search(r'",\s+# \w.{8,}', line), f"{dependency} carries no reason"


# the Makefile


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[1].split())
    documented = re.findall(r"^  make (\S+) +\S", run("make"), re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == phony


def test_train_passes_overrides_on() -> None:
    plan = run("make", "--dry-run", "train", "EXPERIMENT=cnn", "ARGS=trainer.max_epochs=1 seed=2")
    assert "-m bitexp +experiment=cnn trainer.max_epochs=1 seed=2" in plan
