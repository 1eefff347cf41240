"""README and docs say only what runs: every Python block is executed, every file exists."""

import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_run(page, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    if any("hamdeq.training" in block for block in blocks):
        pytest.importorskip("lightning")
    scope: dict = {}
    for block in blocks:
        exec(compile(block, name(page), "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_configurations_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"--config (configs/[a-z_/0-9]+\.yaml)", text):
        assert (ROOT / path).exists(), path


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_the_configuration_page_names_every_field():
    pytest.importorskip("lightning")
    from dataclasses import fields

    from hamdeq import DEQ
    from hamdeq.data import InMemoryDataModule
    from hamdeq.training import HAMClassifier
    from hamdeq.training.cli import Run

    page = (ROOT / "docs/configuration.md").read_text()
    named = {each.name for each in fields(Run)}
    for kind in (HAMClassifier, DEQ, InMemoryDataModule):
        named |= {*inspect.signature(kind).parameters}
    for name in named:
        assert f"`{name}`" in page, name
