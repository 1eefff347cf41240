"""README and docs say only what runs: every Python block is executed, every file exists."""

import inspect
import os
import pydoc
import re
import shutil
import sysconfig
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from processes import start_method

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


# What a page trains is trained for one epoch here: the figures on it were measured, not tested.
SHORTER = {
    r"max_epochs=\d+": "max_epochs=1",
    r"for epoch in range\(\d+\)": "for epoch in range(1)",
    r"\.repeat\(20\)\.split": ".split",
    r"compiled=\d": "compiled=1",
}
SLOW = ("README.md", "docs/measure-convergence.md", "docs/own-data.md", "docs/train.md")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def shorter(block: str) -> str:
    for long, short in SHORTER.items():
        block = re.sub(long, short, block)
    return block


def runs(blocks: list[str], page: Path) -> None:
    scope: dict = {}
    for block in blocks:
        exec(compile(block, name(page), "exec"), scope)


# Where there is no compiler, or no Python.h, pages that compile say so and go on.
COMPILES = shutil.which(os.environ.get("CXX", "g++")) is not None
COMPILES = COMPILES and (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()


@pytest.mark.filterwarnings(f"{'error' if COMPILES else 'ignore'}:compiling failed")
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow if name(p) in SLOW else ()) for p in PAGES],
    ids=name,
)
def test_python_blocks_run(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(page)[2 * (page.name == "README.md") :]  # the first two have a test below
    if any("hamdeq.training" in block for block in blocks):
        pytest.importorskip("lightning")
    runs([shorter(block) for block in blocks], page)


def load_alone(rank: int, block: str, folder: Path) -> None:
    os.chdir(folder)
    with Path("output.txt").open("w") as file, redirect_stdout(file):
        exec(block, {})


@pytest.mark.slow
@pytest.mark.subprocess
def test_readme_model_gives_the_same_numbers_in_a_new_process(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightning")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    train, load, *_ = blocks_of(ROOT / "README.md")
    script = train.splitlines()
    assert len([line for line in script if line and "import" not in line]) <= 10
    runs([train], ROOT / "README.md")
    printed = [
        line for line in capsys.readouterr().out.splitlines() if "tensor" in line or "[" in line
    ]
    mp.start_processes(load_alone, (load, tmp_path), start_method=start_method())
    output = (tmp_path / "output.txt").read_text()
    assert output.splitlines() == printed[-3:]
    for row in re.findall(r"\[([0-9., ]+)\]", output):
        numbers = [float(number) for number in row.split(",")]
        assert numbers[0] == max(numbers)  # it has learned: the three are wines of the first kind


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_configurations_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"--config (configs/[a-z_/0-9]+\.yaml)", text):
        assert (ROOT / path).exists(), path


def test_the_house_is_described_as_it_stands():
    """Files exist, each package is in the table, and each step names what its file has."""
    text = (ROOT / "docs/house.md").read_text()
    for path in re.findall(r"`([\w/]+(?:\.py|/))`", text):
        assert (ROOT / path).exists() or (ROOT / "hamdeq" / path).exists(), path
    for package in (ROOT / "hamdeq").glob("*/__init__.py"):
        assert f"`hamdeq/{package.parent.name}/`" in text
    steps = re.findall(r"\*\*`([\w/.]+)`\*\*,\s+`(?:\w+\.)?(\w+)`", text)
    assert len(steps) > 20
    for path, name in steps:
        code = (ROOT / "hamdeq" / path).read_text()
        assert re.search(rf"^ *(def|class) {name}\b", code, re.MULTILINE), (path, name)


@pytest.mark.parametrize("page", sorted((ROOT / "docs/api").glob("*.md")), ids=name)
def test_the_reference_names_what_there_is(page):
    if page.stem == "training":
        pytest.importorskip("lightning")
    module = "hamdeq"
    for directive, given in re.findall(r"^\.\. (\w+):: ([\w.]+)$", page.read_text(), re.MULTILINE):
        if directive == "currentmodule":
            module = given
        elif directive.startswith("auto"):
            assert pydoc.locate(given) or pydoc.locate(f"{module}.{given}"), given


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_the_configuration_page_names_every_field():
    pytest.importorskip("lightning")
    from dataclasses import fields

    from hamdeq import DEQ
    from hamdeq.data import InMemoryDataModule
    from hamdeq.training import HAMClassifier
    from hamdeq.training.cli.main import Run

    page = (ROOT / "docs/configuration.md").read_text()
    named = {each.name for each in fields(Run)}
    for kind in (HAMClassifier, DEQ, InMemoryDataModule):
        named |= {*inspect.signature(kind).parameters}
    for name in named:
        assert f"`{name}`" in page, name
