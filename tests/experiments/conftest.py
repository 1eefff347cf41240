"""Set-up shared by the tests of the experiments."""

import contextlib
import io
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _builds_the_parser_once(one_parser):
    pass


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trainings_in_process(monkeypatch):
    """Trainings in this process, which need not import everything anew."""
    pytest.importorskip("lightning")
    from hamdeq.experiments import series
    from hamdeq.training.cli.main import main

    def watch(command, lock, meanwhile):
        assert command[:4] == [sys.executable, "-m", "hamdeq.training", "fit"]
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                main(command[3:])
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
                return 1, errors.getvalue()
        return 0, ""

    monkeypatch.setattr(series, "_watch", watch)
