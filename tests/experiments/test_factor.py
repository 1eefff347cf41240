"""How much faster even-odd steps are, by each way of counting."""

import csv

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from hamdeq import DEQ, HAM, Picard
from hamdeq.experiments.convergence import factor
from hamdeq.experiments.convergence.factor import NEAR, factors, main, summarise


def memory(*sizes: int, gain: float = 0.8) -> DEQ:
    torch.manual_seed(0)
    return DEQ(HAM.chain([12, *sizes], gain=[1.0] + [gain] * (len(sizes) - 1)))


def images(count: int = 30) -> dict[str, torch.Tensor]:
    return {"input": torch.rand(count, 12, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("sizes", [(20, 5), (20, 10, 8, 5)])
def test_near_the_equilibrium_an_even_odd_step_is_two_synchronous_ones(sizes):
    found = factors(memory(*sizes), images())
    assert [one.rule for one in found[:2]] == ["papers' count", "evaluations"]
    assert len(found) == 2 + len(NEAR)
    for one in found:
        assert one.left_out == 0
        assert one.factor == one.synchronous / one.even_odd
    # After k even-odd steps the layers that remain are those of 2k synchronous ones: half as
    # many, rounded up, unless the synchronous state was near after an odd step already.
    for one in found[2:]:
        assert 1.8 < one.factor <= 2
    # Two evaluations more in either case hide a part of the factor.
    assert found[1].factor < found[0].factor


def test_counts_are_those_of_plain_iteration_in_float64():
    deq, x = memory(20, 5), images()
    evaluations = factors(deq, x)[1]
    double = {name: state.double() for name, state in x.items()}
    for splitting, mean in ((None, evaluations.synchronous), ("even-odd", evaluations.even_odd)):
        plain = DEQ(deq.ham.double(), splitting=splitting, solver=Picard(), start="zeros")
        assert plain(double).steps.double().mean().item() == pytest.approx(mean)


def test_samples_that_do_not_end_are_left_out():
    found = factors(memory(20, 5), images(), max_steps=4)
    assert found[-1].left_out == 1  # four steps are too few for 1e-8
    assert all(0 <= one.left_out <= 1 for one in found)


def test_runs_of_the_same_sizes_are_averaged():
    rows = [
        ["a", "3", "4-3-2", seed, rule, *numbers]
        for seed, numbers in (("0", ["4", "2", "2.0", "0"]), ("1", ["6", "3", "2.0", "0"]))
        for rule in ("evaluations", "papers' count")
    ]
    heads, lines = summarise(rows)
    assert [len(line) for line in lines] == [len(heads)] * 2
    assert lines[0][:5] == ["a", "4-3-2", "2", "evaluations", "5.00 ± 1.41"]


def test_the_command_writes_a_row_for_each_count(tmp_path, monkeypatch, capsys):
    class Trained:
        output, input, deq = "output", "input", memory(20, 5)

        @staticmethod
        def as_input(x):
            return x

        @staticmethod
        def split(name):
            return images()["input"], None

    run = tmp_path / "a/version_0"
    (run / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(factor, "adopted", lambda text: [factor.Source("mine", adopted=run)])
    monkeypatch.setattr(factor, "load_run", lambda folder, trust: (Trained, Trained))
    main(["--adopt", "mine=somewhere", "--samples", "20", "--root", str(tmp_path)])
    with (tmp_path / "factors.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = factors(Trained.deq, {"input": images()["input"][:20]})
    assert [row["count"] for row in rows] == [one.rule for one in expected]
    assert [row["factor"] for row in rows] == [f"{one.factor:.3f}" for one in expected]
    assert {(row["memory"], row["layers"], row["sizes"]) for row in rows} == {
        ("mine", "3", "12-20-5")
    }
    assert "papers' count" in capsys.readouterr().out
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["factor"] for row in table] == [row["factor"] for row in rows]
    with pytest.raises(SystemExit):
        main([])
    assert "expected configurations to train" in capsys.readouterr().err
