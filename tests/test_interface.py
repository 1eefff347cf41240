"""What is seen from the outside: what an import loads, public names, how objects print."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hamdeq
import hamdeq.memories
import hamdeq.nn
from hamdeq import (
    CHN,
    DEQ,
    HAM,
    BengioFischer,
    Bias,
    Composed,
    Conv2d,
    Dense,
    Flatten,
    FunctionSynapse,
    Identity,
    Lateral,
    MaxPool2d,
    Neurons,
    Picard,
    Sigmoid,
    Softmax,
    TwoLayer,
    clamp,
    eliminate,
)

PACKAGE = Path(hamdeq.__file__).parent
EXTRA = ("data", "experiments", "plots", "training")  # of the extra `train`
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name == "__init__.py" or not path.name.startswith("_")
)


def module_of(name):
    if name.split(".")[1:2] and name.split(".")[1] in EXTRA:
        pytest.importorskip("lightning")
        pytest.importorskip("matplotlib")
    return importlib.import_module(name)


# ------------------------------------------------------------------------------ names


# What is loaded after PyTorch, and after each of these calls in turn.
CALLS = """
import sys, torch
print(*sys.modules)
import hamdeq
print(*sys.modules)
from hamdeq.memories import DenseAssociativeMemory
DenseAssociativeMemory(8, memories=3).fit(torch.ones(2, 8), epochs=2)
print(*sys.modules)
try:
    from hamdeq._torchvision import check_torchvision
    check_torchvision()
finally:
    print(*sys.modules)
"""


@pytest.fixture(scope="module")
def loaded():
    """The modules loaded after each of the calls, made in a new process."""
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.subprocess
def test_an_import_loads_torchdeq_and_nothing_else_beyond_torch(loaded):
    new = {name.split(".")[0] for name in loaded[1] - loaded[0]} - sys.stdlib_module_names
    assert {"hamdeq", "torchdeq"} <= new <= {"hamdeq", "torchdeq", "torch"}


@pytest.mark.subprocess
def test_fit_of_a_dense_memory_needs_neither_lightning_nor_the_compiler(loaded):
    assert "hamdeq.memories.dense" in loaded[2]
    assert not {"lightning", "torch._dynamo", "matplotlib"} & loaded[2]


@pytest.mark.subprocess
def test_the_check_of_torchvision_does_not_import_lightning(loaded):
    pytest.importorskip("torchvision")
    assert "torchvision" in loaded[3]
    assert "lightning" not in loaded[3]


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_listed_and_documented(name):
    module = module_of(name)
    assert module.__doc__
    listed = getattr(module, "__all__", ())  # a package may only have modules
    for public in listed:
        value = getattr(module, public)
        assert not public.startswith("_")
        if inspect.isroutine(value) or inspect.isclass(value):
            assert value.__doc__, public
    if module.__file__.endswith("__init__.py"):  # what it takes from its modules is its own
        names = [n for n, value in vars(module).items() if not inspect.ismodule(value)]
    else:
        names = [n for n, value in vars(module).items() if _made_in(value, name)]
    assert {n for n in names if not n.startswith("_")} - {"annotations"} <= {*listed}


def _made_in(value, module):
    return (inspect.isroutine(value) or inspect.isclass(value)) and value.__module__ == module


def test_the_package_tells_what_it_is():
    text = hamdeq.__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, {}, "hamdeq", None, None)
    assert doctest.DocTestRunner().run(example) == (0, len(example.examples))
    assert example.examples
    public = {*hamdeq.__all__, *hamdeq.nn.__all__, *hamdeq.memories.__all__}
    public |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    for name in re.findall(r"``([\w.]+)``", text):
        assert name.removeprefix("hamdeq.").split(".")[0] in public, name


def test_types_are_for_users_too():
    assert (PACKAGE / "py.typed").exists()


# ---------------------------------------------------------------------------- printing


def test_a_chain_prints_as_its_graph():
    assert repr(HAM.chain([784, 512, 10])) == (
        "HAM(\n"
        "  3 layers, 4 connections, 407,050 parameters\n"
        "  input    784  Sigmoid(beta=4, center=0.5)\n"
        "  hidden1  512  Sigmoid(beta=4, center=0.5)\n"
        "  output    10  Sigmoid(beta=4, center=0.5)\n"
        "  input – hidden1   401,408 parameters  Dense(784, 512)\n"
        "  hidden1 – output    5,120 parameters  Dense(512, 10)\n"
        "  hidden1               512 parameters  Bias((512,))\n"
        "  output                 10 parameters  Bias((10,))\n"
        ")"
    )


def test_skip_connections_hyperedges_and_lateral_synapses_print():
    def three(a, b, c):
        return -a.sum(1) * b.sum(1) * c.sum(1)

    neurons = {"a": Neurons(6, Identity()), "b": Neurons(5, Identity()), "c": Neurons(1, Softmax())}
    connections = [
        (("a", "b"), Dense(6, 5)),
        (("a", "c"), Dense(6, 1)),
        (("b",), Lateral(5)),
        (("a", "b", "c"), FunctionSynapse(three)),
        (("c",), Bias(1)),
    ]
    assert repr(HAM(neurons, connections)).splitlines()[1:-1] == [
        "  3 layers, 5 connections, 62 parameters",
        "  a  6  Identity()",
        "  b  5  Identity()",
        "  c  1  Softmax(beta=1)",
        "  a – b      30 parameters  Dense(6, 5)",
        "  a – c       6 parameters  Dense(6, 1)",
        "  b          25 parameters  Lateral(5)",
        "  a – b – c   0 parameters  FunctionSynapse(three)",
        "  c            1 parameter  Bias((1,))",
    ]


def test_images_and_composed_synapses_print_on_one_line_each():
    ham = HAM(
        {
            "image": Neurons((1, 28, 28), Identity()),
            "maps": Neurons((2, 12, 12), Sigmoid()),
            "output": Neurons(10, Softmax()),
        },
        [
            (("image", "maps"), Composed(Conv2d(1, 2, 5), MaxPool2d(2))),
            (("maps", "output"), Composed(Flatten(), Dense(288, 10))),
        ],
    )
    lines = repr(ham).splitlines()
    assert len(lines) == 8
    assert lines[2].split() == ["image", "1×28×28", "Identity()"]
    assert lines[5].endswith(f"50 parameters  Composed({Conv2d(1, 2, 5)}, {MaxPool2d(2)})")
    assert lines[6].endswith("2,880 parameters  Composed(Flatten(), Dense(288, 10))")


def test_shared_weights_are_counted_once():
    same = Dense(6, 6)
    layer = Neurons(6, Identity())
    ham = HAM(
        {"a": layer, "b": Neurons(6, Identity()), "c": Neurons(6, Identity())},
        [(("a", "b"), same), (("b", "c"), same)],
    )
    lines = repr(ham).splitlines()
    assert "36 parameters" in lines[1]
    assert lines[5] == "  a – b  36 parameters  Dense(6, 6)"
    assert lines[6] == "  b – c       as a – b  Dense(6, 6)"


def test_what_is_made_of_modules_prints_on_one_line():
    class Cubic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Linear(1, 1)

        def forward(self, a):
            return a.sum(1)

    ham = HAM({"a": Neurons(3, Identity())}, [(("a",), FunctionSynapse(Cubic()))])
    assert repr(ham).splitlines()[3] == "  a  2 parameters  FunctionSynapse(Cubic)"
    assert repr(BengioFischer(Sigmoid())) == f"BengioFischer({Sigmoid()})"
    assert f"BengioFischer({Sigmoid(4.0, 0.5)})" in repr(CHN.chain([4, 2]))
    assert repr(TwoLayer.model_a((5, 64))).startswith("TwoLayer(\n  2 layers, 1 connection, 320 ")


def test_a_deq_prints_its_choices_and_its_memory():
    ham = HAM.chain([7, 5, 3])
    deq = DEQ(ham, solver=Picard(max_steps=9))
    lines = repr(deq).splitlines()
    assert lines[1:4] == [
        "  clamped=('input',)",
        "  splitting='even-odd', which eliminates hidden1",
        f"  solver={deq.solver}",
    ]
    inside = repr(ham).replace("\n", "\n  ")
    assert f"  (ham): {inside}\n)" in repr(deq)
    assert "splitting=None, which eliminates nothing" in repr(DEQ(ham, splitting=None))


def test_a_solution_tells_how_samples_failed():
    deq = DEQ(
        HAM.chain([7, 5, 3]), solver=Picard(max_steps=1, fallback_steps=0), on_failure="ignore"
    )
    x = torch.rand(3, 7)
    x[1, 2] = torch.nan
    text = repr(deq({"input": x}))
    assert "converged: 0/3 (2 MAX_STEPS, 1 INVALID)" in text


def test_clamped_and_reduced_memories_print_their_layers():
    ham = HAM.chain([7, 5, 3])
    state = {"input": torch.rand(2, 7), "output": torch.rand(2, 3)}
    clamped = clamp(ham, state, {"output": torch.tensor([True, False, False])})
    assert repr(clamped) == "Clamped(clamped: input; clamped in part: output; free: hidden1)"
    assert repr(eliminate(clamped, ["hidden1"])) == "Reduced(visible: output; hidden: hidden1)"
    assert repr(eliminate(clamped, [])) == "Reduced(visible: hidden1, output; hidden: none)"
