"""What is declared is what is needed: packages, versions, configurations, the command."""

import ast
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import hamdeq

tomllib = pytest.importorskip("tomllib")  # in Python 3.10 there is none

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
NEEDED += [Requirement(text) for name in ("train", "sparse", "ode") for text in EXTRAS[name]]
# Where a package is not imported by the name it is installed by.
IMPORTED_AS = {"scikit-learn": "sklearn", "PyYAML": "yaml"}


def imported(path: Path) -> set[str]:
    """The packages that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module))
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names - {"hamdeq"}


def test_every_package_that_is_imported_is_declared_and_no_other():
    names = {IMPORTED_AS.get(need.name, need.name.replace("-", "_")) for need in NEEDED}
    assert set().union(*(imported(path) for path in (ROOT / "hamdeq").rglob("*.py"))) == names


def test_every_package_has_a_lower_bound_and_no_upper_one():
    for need in NEEDED:
        assert [spec.operator for spec in need.specifier] == [">="], need


@pytest.mark.parametrize(
    ("name", "refused", "taken"),
    [
        ("torch", "2.9.1", "2.10.0"),  # weights_only=True could run code
        ("lightning", "2.6.5", "2.6.6"),  # so could its own checkpoints
        ("wandb", "0.28.2", "0.29.0"),
        ("jsonargparse", "4.51.0", "4.52.0"),  # imports whatever a configuration names
    ],
)
def test_versions_with_known_flaws_are_refused(name, refused, taken):
    (need,) = [need for need in NEEDED if need.name == name]
    assert refused not in need.specifier
    assert taken in need.specifier


def test_the_lowest_and_the_newest_versions_are_tested():
    workflow = yaml.safe_load((ROOT / ".github/workflows/versions.yml").read_text())
    job = workflow["jobs"]["test"]
    kinds = [entry["resolution"] for entry in job["strategy"]["matrix"]["include"]]
    assert kinds == ["lowest-direct", "highest"]
    commands = " ".join(step.get("run", "") for step in job["steps"])
    assert "--resolution ${{ matrix.resolution }}" in commands
    oldest = job["strategy"]["matrix"]["include"][0]["python"]
    assert PROJECT["requires-python"] == f">={oldest}"


def test_the_wheel_holds_the_configurations_and_the_command(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (path,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(path) as file:
        names = set(file.namelist())
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "hamdeq = hamdeq.__main__:main" in file.read(points).decode()
    configs = (ROOT / "configs").rglob("*.yaml")
    assert {f"hamdeq/{path.relative_to(ROOT)}" for path in configs} <= names
    assert "hamdeq/py.typed" in names


# -------------------------------------------------------------------- configurations


@pytest.fixture
def configurations():
    pytest.importorskip("lightning")
    from hamdeq.training.cli import configurations

    return configurations


def test_configurations_are_found_by_name(configurations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = configurations.names()
    assert {"digits", "mnist/ham_eo_deq", "bags/mean"} <= {*names}
    assert not any(name.startswith("sweeps/") for name in names)
    for name in names:
        assert configurations.configuration(name).is_file()
    found = str(configurations.configuration("digits"))
    args = configurations.with_files
    assert args(["fit", "--config=digits", "--seed=1"]) == ["fit", f"--config={found}", "--seed=1"]
    assert args(["fit", "--config", "digits", "-c", found]) == [
        "fit",
        "--config",
        found,
        "-c",
        found,
    ]
    with pytest.raises(FileNotFoundError, match="did you mean digits"):
        args(["fit", "--config=digts"])
    # A file of one's own comes first.
    (tmp_path / "digits").touch()
    assert args(["--config=digits"]) == ["--config=digits"]


def test_configurations_are_found_in_an_installed_package(configurations, tmp_path, monkeypatch):
    (tmp_path / "hamdeq/configs/mnist").mkdir(parents=True)
    (tmp_path / "hamdeq/configs/mnist/mine.yaml").touch()
    monkeypatch.setattr(hamdeq, "__file__", str(tmp_path / "hamdeq/__init__.py"))
    assert configurations.names() == ["mnist/mine"]
    assert configurations.configuration("mnist/mine").is_file()


def test_the_command_says_which_packages_it_lacks(monkeypatch):
    from hamdeq import __main__ as command

    monkeypatch.setitem(sys.modules, "lightning", None)
    for name in [name for name in sys.modules if name.startswith("hamdeq.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(command, "check_torchvision", lambda: None)
    with pytest.raises(SystemExit, match=r"pip install 'hamdeq\[train\]'"):
        command.main()
