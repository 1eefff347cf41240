"""The search for hyperparameters: its maps, its files, and that it goes on where it stopped."""

import csv
import json
import multiprocessing
import re
import time
import warnings
from concurrent.futures import BrokenExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("joblib")

from joblib.externals.loky.backend import context

from hamdeq.experiments.hyperparameters import (
    Protocol,
    axes,
    cli,
    load,
    papers_maps,
    run,
    running,
)
from hamdeq.experiments.hyperparameters.cli import main
from hamdeq.experiments.hyperparameters.grid import Kernel, measure
from hamdeq.experiments.hyperparameters.heat import HeatMap, heat_maps
from hamdeq.memories import LeakyRectifiedPolynomial, Learning
from hamdeq.training import files

SHOWN = ("distance", "loss", "recalled")
TINY = ["--size", "8", "--n", "2", "3", "--states", "3", "--memories", "4", "--epochs", "5"]
TINY += ["--rates", "0.1", "0.5", "--inverse-temperatures", "0.5", "1.0", "1.5"]
TINY += ["--formulation", "normalised", "--grid", "fine", "--kernel", "eager", "--repeats", "2"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take their time, and have tests of their own."""
    monkeypatch.setattr(cli, "draw", lambda results, folder: folder)
    monkeypatch.setattr(cli, "draw_overviews", lambda found, folder: [])


def arguments_of(out: Path, *n: str) -> list[str]:
    """The command line of the maps of these n, without wandb."""
    arguments = [*TINY, "--wandb", "disabled", "--out", str(out)]
    if n:
        arguments[arguments.index("--n") + 1 : arguments.index("--states")] = n
    return arguments


def tiny(**changes):
    given = {"formulation": "normalised", "grid": "fine", "size": 8, "states": 3, "n": 3}
    given |= {"rates": (0.1, 0.5), "inverse_temperatures": (0.5, 1.0, 1.5), "memories": 4}
    return Protocol(**(given | {"epochs": 5, "repeats": 2} | changes))


def test_the_papers_maps():
    maps = papers_maps(["original", "normalised"], ["coarse", "fine"], [100, 250])
    assert len(maps) == len(set(maps)) == 12 + 8 + 15 + 12
    assert ("normalised", "fine", 100, 20, 100) in maps
    assert ("normalised", "coarse", 100, 20, 100) not in maps
    assert ("normalised", "fine", 250, 30, 30) in maps
    assert papers_maps(["original"], ["fine"], [50], [4]) == [("original", "fine", 50, 10, 4)]


@pytest.mark.parametrize("grid", ["coarse", "fine"])
@pytest.mark.parametrize("full", [False, True])
def test_the_axes_hold_what_the_papers_report(grid, full):
    rates, inverse = axes("normalised", grid, 100, full=full)
    assert min(inverse) < 0.9 < max(inverse)
    assert min(rates) < 0.5 < max(rates)
    _, original = axes("original", grid, 100, full=full)
    assert min(original) < 0.01 < max(original)
    if grid == "fine":
        assert 0.9 in inverse
        np.testing.assert_allclose(original, np.array(inverse) / 100, rtol=1e-5)


def test_the_full_protocol_has_the_cells_of_the_small_one_and_more():
    for grid in ("coarse", "fine"):
        small, full = (axes("normalised", grid, 100, full=f) for f in (False, True))
        assert set(small[0]) < set(full[0])
        assert set(small[1]) < set(full[1])


def test_a_draw_is_the_same_in_every_cell_and_for_every_n():
    first, other = tiny().networks(), tiny(n=5).networks()
    shape = tiny().shape
    states = first.states.reshape(*shape, 3, 8)
    assert (states == states[:1, :1]).all()
    assert not (states[0, 0, 0] == states[0, 0, 1]).all()
    assert (first.memories == other.memories).all()
    assert not (first.states == tiny(seed=1).networks().states).all()
    rates = first.rates.reshape(shape)
    assert rates[:, 0, 0].tolist() == [0.1, 0.5]
    assert (1 / first.temperatures.reshape(shape))[0, :, 0].tolist() == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("interaction", ["rectified", "polynomial"])
def test_of_a_homogeneous_function_the_two_formulations_are_one(interaction):
    normalised = tiny(interaction=interaction)
    original = tiny(
        interaction=interaction,
        formulation="original",
        inverse_temperatures=tuple(t / 8 for t in normalised.inverse_temperatures),
    )
    found = [
        measure(p.networks(), p.training(), kernel=Kernel(compiled=False))
        for p in (normalised, original)
    ]
    torch.testing.assert_close(found[0].loss, found[1].loss, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[0].distance, found[1].distance)


def test_other_protocols_have_other_names():
    names = {tiny(**change).name for change in ({}, {"n": 4}, {"std": 0.5}, {"seed": 1})}
    assert len(names) == 4
    assert tiny().name.startswith("leaky-normalised-N8-n3-fine-")


def test_results_come_back_from_their_file_with_what_has_no_number(tmp_path):
    results = run(tiny(), compiled=False)
    results.measures["distance"][1, 2, 0] = np.nan
    path = results.save(tmp_path)
    assert "NaN" not in path.read_text()
    back = load(tiny(), tmp_path)
    assert back is not None
    for name, values in results.measures.items():
        np.testing.assert_array_equal(back.measures[name], values)
    assert np.isnan(back.mean("distance")[1, 2])
    assert back.overflows.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert back.region()["overflows"] == 1
    assert load(tiny(n=4), tmp_path) is None


def test_a_map_where_everything_overflows_has_no_best_cell():
    results = run(tiny(), compiled=False)
    results.measures["distance"][:] = np.nan
    assert results.region()["good"] == 0
    assert results.region()["inverse_temperatures"] is None


@pytest.mark.slow
def test_the_command_line_writes_numbers_tables_and_figures(tmp_path, capsys):
    main(arguments_of(tmp_path))
    told = capsys.readouterr().out
    assert "2 maps of 24 networks: 2 repeats" in told
    assert "--full" in told
    assert "kernels: eager" in told
    with (tmp_path / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3 * 2
    protocol = tiny(n=3)
    results = load(protocol, tmp_path / "maps")
    assert results is not None
    row = next(r for r in rows if r["n"] == "3" and r["rate"] == "0.5" and r["repeat"] == "1")
    assert float(row["distance"]) == results.measures["distance"][1, 0, 1]
    content = json.loads((tmp_path / "maps" / f"{protocol.name}.json").read_text())
    assert content["protocol"]["epochs"] == 5
    table = (tmp_path / "table.md").read_text()
    assert len(table.splitlines()) == 2 + 2
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == sorted(
        ["all-leaky-normalised-N8-fine.png", *(f"{tiny(n=n).name}.png" for n in (2, 3))]
    )


@pytest.mark.usefixtures("no_pictures")
def test_options_of_learning_give_a_map_for_each_combination(tmp_path):
    arguments = arguments_of(tmp_path, "2")
    arguments += ["--interaction", "leaky", "polynomial", "--eps", "0.01", "-0.01"]
    arguments += ["--floor", "0", "1e-30", "--decay", "1", "--momentum", "0.9", "--exponent", "2"]
    main(arguments)
    with (tmp_path / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    variants = {tuple(row[key] for key in ("interaction", "eps", "floor")) for row in rows}
    assert variants == {
        *(("leaky", eps, floor) for eps in ("0.01", "-0.01") for floor in ("0.0", "1e-30")),
        *(("polynomial", "0.0", floor) for floor in ("0.0", "1e-30")),
    }
    assert {(r["decay"], r["momentum"], r["exponent"]) for r in rows} == {("1.0", "0.9", "2")}
    others = "decay = 1, momentum = 0.9, exponent = 2"
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[3].startswith(f"| leaky, normalised, N = 8, fine, {others}, floor = 1e-30 | 2 |")
    assert lines[4].startswith(f"| leaky, normalised, N = 8, fine, {others}, eps = -0.01 | 2 |")
    assert lines[6].startswith(f"| polynomial, normalised, N = 8, fine, {others} | 2 |")
    # For a page, of the settings those alone that differ.
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][:5] == ["F", "ε", "floor", "n", "best distance"]
    assert [row[:4] for row in rows[3:6]] == [
        ["leaky", "-0.01", "0", "2"],
        ["leaky", "-0.01", "1e-30", "2"],
        ["polynomial", "–", "0", "2"],
    ]


def test_the_settings_of_a_protocol_are_those_of_its_training():
    given = {"decay": 1.0, "momentum": 0.9, "exponent": 3, "floor": 1e-30}
    protocol = tiny(**given, eps=-0.01, recall_temperature=2.0)
    training = protocol.training()
    assert training.learning == Learning(**given)
    assert training.recall_temperature == 2.0
    assert "recall_temperature = 2" in protocol.variant
    assert training.interaction == LeakyRectifiedPolynomial(3, -0.01)
    assert tiny().variant == ""
    assert tiny(interaction="polynomial", eps=0.0).variant == ""


@pytest.mark.usefixtures("no_pictures")
def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    arguments = arguments_of(tmp_path, "2", "3", "4")
    main(arguments)
    maps = tmp_path / "maps"
    paths = {n: maps / f"{tiny(n=n).name}.json" for n in (2, 3, 4)}
    before = {n: path.read_text() for n, path in paths.items()}
    paths[3].write_text(before[3][:200])  # as no kill of ours leaves it
    paths[4].unlink()
    # As a kill leaves it, of a process that has ended.
    (maps / f"{tiny(n=4).name}.json.{files._HOST}-4194305-0.tmp").write_text(before[4][:200])
    files._cleared.clear()
    measured = []

    def counted(protocol, **options):
        measured.append(protocol.n)
        return run(protocol, **options)

    monkeypatch.setattr(running, "run", counted)
    with pytest.warns(UserWarning, match=re.escape(f"{paths[3]}: expected the results of a map")):
        main(arguments)
    assert measured == [3, 4]
    assert paths[2].read_text() == before[2]
    for n in (3, 4):
        again, then = (json.loads(text)["measures"] for text in (paths[n].read_text(), before[n]))
        assert again == then
    assert not list(maps.glob("*.tmp"))
    main(arguments)
    assert measured == [3, 4]


@pytest.mark.subprocess
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_it_loses_the_maps_in_progress_alone_and_leaves_no_process(tmp_path):
    maps = tmp_path / "maps"
    arguments = arguments_of(tmp_path, "2", "3", "4", "5")
    arguments[arguments.index("--epochs") + 1] = "100"

    def search():
        # Processes that are forked need not import everything anew, which takes far longer.
        warnings.simplefilter("ignore")  # of such processes
        context.set_start_method("fork", force=True)
        main([*arguments, "--workers", "2"])

    process = multiprocessing.get_context("fork").Process(target=search)
    process.start()
    end = time.monotonic() + 60
    while not (done := list(maps.glob("*.json"))):
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.01)
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [int(pid) for task in tasks for pid in task.read_text().split()]
    process.kill()
    process.join()
    assert len(children) >= 2  # and what joblib cleans up with
    while any(_lives(pid) for pid in children):
        assert time.monotonic() < end
        time.sleep(0.01)
    kept = {path: path.stat().st_mtime_ns for path in maps.glob("*.json")}
    assert set(done) <= set(kept)
    assert len(kept) < 4
    main(arguments)
    assert len(list(maps.glob("*.json"))) == 4
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    # Processes of their own measure what this one does.
    done[0].rename(tmp_path / "theirs.json")
    main(arguments)
    ours, theirs = (json.loads(p.read_text()) for p in (done[0], tmp_path / "theirs.json"))
    assert ours["measures"] == theirs["measures"]


@pytest.mark.usefixtures("no_pictures")
def test_a_figure_that_a_kill_cut_off_is_drawn_again(tmp_path, monkeypatch):
    figures = tmp_path / "figures"

    def draw(results, folder):
        files.write_file(folder / f"{results.protocol.name}.png", b"...IEND\xaeB`\x82")

    monkeypatch.setattr(cli, "draw", draw)
    arguments = arguments_of(tmp_path)
    main(arguments)
    cut, whole = sorted(figures.iterdir())
    cut.write_bytes(b"...")
    before = whole.stat().st_mtime_ns
    main(arguments)
    assert cut.read_bytes() == whole.read_bytes()
    assert whole.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", ["", "[]", '{"measures": 1}', '{"measures": {}}', "null"])
def test_a_damaged_map_is_named(tmp_path, content):
    path = tmp_path / f"{tiny().name}.json"
    path.write_text(content)
    with pytest.raises(files.DamagedFileError, match=re.escape(f"{path}: expected the results")):
        load(tiny(), tmp_path)


def test_a_map_of_another_shape_is_named(tmp_path):
    path = run(tiny(repeats=1), compiled=False).save(tmp_path)
    path = path.rename(tmp_path / f"{tiny().name}.json")
    with pytest.raises(files.DamagedFileError, match=r"expected numbers in the shape \(2, 3, 2\)"):
        load(tiny(), tmp_path)


@pytest.mark.usefixtures("no_pictures")
def test_one_map_that_fails_does_not_keep_the_others_from_being_measured(tmp_path, monkeypatch):
    def sometimes(protocol, **options):
        if protocol.n == 2:
            raise RuntimeError("out of memory")
        return run(protocol, **options)

    monkeypatch.setattr(running, "run", sometimes)
    with pytest.raises(
        SystemExit, match=r"error: failed: leaky-normalised-N8-n2\S+: out of memory"
    ):
        main(arguments_of(tmp_path))
    assert load(tiny(n=3), tmp_path / "maps") is not None
    assert "| leaky, normalised, N = 8, fine | 3 |" in (tmp_path / "table.md").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_a_process_that_is_killed_ends_the_search_with_what_was_not_measured(tmp_path, monkeypatch):
    def pool(workers, **options):
        def run(jobs):
            for function, args, kwargs in [*jobs][:1]:
                yield function(*args[:4], None, **kwargs)
            raise BrokenExecutor("terminated")

        return run

    monkeypatch.setattr(running, "Parallel", pool)
    with pytest.raises(SystemExit, match=r"error: failed: leaky-normalised-N8-n3\S+: a process"):
        main([*arguments_of(tmp_path), "--workers", "2"])
    assert load(tiny(n=2), tmp_path / "maps") is not None


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_search_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(protocol, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(arguments_of(tmp_path))
    told = "interrupted; the same command goes on where this one stopped"
    assert capsys.readouterr().err.splitlines()[-1] == told


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


@pytest.mark.slow
def test_wandb_has_each_map_once(tmp_path):
    pytest.importorskip("wandb")
    arguments = arguments_of(tmp_path, "2")
    main(arguments)
    arguments[arguments.index("disabled")] = "offline"
    main(arguments)  # what was measured without it is logged as well
    main(arguments)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "0"], "--n: expected a positive integer, got '0'"),
        (["--n", "2.5"], "--n: expected a positive integer, got '2.5'"),
        (["--rates", "0"], "--rates: expected a finite number > 0, got '0'"),
        (["--inverse-temperatures", "inf"], "expected a finite number > 0, got 'inf'"),
        (["--std", "nan"], "--std: expected a finite number > 0, got 'nan'"),
        (["--eps", "inf"], "--eps: expected a finite number, got 'inf'"),
        (["--floor", "-1"], "--floor: expected a finite number ≥ 0, got '-1'"),
        (["--momentum", "1"], "--momentum: expected a finite number ≥ 0 and < 1, got '1'"),
        (["--decay", "0"], "--decay: expected a finite number > 0 and ≤ 1, got '0'"),
        (["--workers", "0"], "--workers: expected a positive integer, got '0'"),
        (["--formulation", "new"], "--formulation: invalid choice: 'new'"),
        (["--size", "60"], "expected one of which the papers have maps"),
        (["--rate", "0.1"], "no option --rate. Did you mean --rates?"),
        (["--out", "file/out"], "--out: expected a folder that can be written"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message, here, capsys):
    (here / "file").touch()
    with pytest.raises(SystemExit):
        main(["--out", "out", *arguments])
    assert message in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["file"]


def heat(**changes):
    ones = np.ones((2, 3))
    return HeatMap((0.1, 0.5), (0.5, 0.9, 1.3), **(dict.fromkeys(SHOWN, ones) | changes))


def drawn(*maps):
    """The figure of maps with n = 2, 3, …, their panels, and the scales."""
    named = {f"n = {n}": one for n, one in enumerate(maps, 2)}
    figure = heat_maps(named, farthest=14.0, good=1.4)
    panels = [axes for axes in figure.axes if axes.images]
    return figure, panels, [axes for axes in figure.axes if not axes.images]


def test_a_heat_map_labels_its_axes_and_hatches_what_has_no_number():
    distance = np.ones((2, 3))
    distance[1, 2] = np.nan
    _, panels, _ = drawn(heat(distance=distance))
    assert len(panels) == 3
    for panel in panels:
        assert [text.get_text() for text in panel.get_xticklabels()] == ["0.5", "0.9", "1.3"]
        assert [text.get_text() for text in panel.get_yticklabels()] == ["0.1", "0.5"]
        assert panel.yaxis.get_tick_params()["labelleft"]
        assert panel.get_xlabel() == "1/T"
    hatched = [len([c for c in panel.collections if c.get_hatch()]) for panel in panels]
    assert hatched == [1, 0, 0]


def test_heat_maps_share_scales_that_say_which_end_is_good():
    _, panels, scales = drawn(heat(), heat(loss=np.zeros((2, 3))))
    limits = [panel.images[0].get_clim() for panel in panels]
    assert limits == [(0, 14.0), (0, 1.0), (0, 1.0)] * 2
    assert [panel.get_title() for panel in panels] == ["n = 2", "", "", "n = 3", "", ""]
    best = [scale.get_title().splitlines()[-1] for scale in scales]
    assert best == ["(0 is best)", "(0 is best)", "(1 is best)"]
    marks = [{text.get_text() for text in scale.get_xticklabels()} for scale in scales]
    assert {"1.4\ngood below", "14 = √(2N)\nrandom states"} < marks[0]
    assert "1\nno prediction" in marks[1]


def test_a_loss_beyond_that_of_no_prediction_is_white_but_for_rounding():
    _, panels, _ = drawn(heat(loss=np.array([[0.0, 0.5, 1.0], [1.0 + 1e-9, 1.1, 2.0]])))
    image = panels[1].images[0]
    white = (image.to_rgba(image.get_array())[..., :3] == 1).all(-1)
    assert white.tolist() == [[False, False, False], [False, True, True]]


@pytest.mark.parametrize(("count", "columns"), [(1, 3), (9, 5)])
@pytest.mark.slow
def test_heat_maps_fill_rows_of_at_most_eight_and_no_text_is_cut_off(count, columns):
    one = HeatMap((0.0316, 0.1), (0.00316, 0.01, 0.0316), *[np.ones((2, 3))] * 3)
    figure, panels, _ = drawn(*[one] * count)
    assert len(panels) == 3 * count
    assert len({round(panel.get_position().x0, 6) for panel in panels}) == columns
    figure.draw_without_rendering()
    whole = figure.bbox
    assert whole.width == 10 * figure.dpi
    for each in figure.axes:
        box = each.get_tightbbox()
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heat(loss=np.ones((3, 2))), "loss: expected a number for each of (2, 3), got"),
        (lambda: heat_maps({}, farthest=14.0, good=1.4), "maps: expected at least one, got none"),
        (
            lambda: heat_maps({"n = 3": heat()}, farthest=14.0, good=20.0),
            "good: expected a distance between 0 and 14, got 20",
        ),
    ],
    ids=["shape", "none", "good"],
)
def test_heat_maps_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
