"""What binary memories refuse, and what they say."""

import math
import re

import pytest
import torch

from hamdeq.memories import (
    Asynchronous,
    DenseAssociativeMemory,
    Exponential,
    FeedForward,
    Hebbian,
    HopfieldNetwork,
    Interacting,
    LeakyRectifiedPolynomial,
    Learning,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
    Synchronous,
)

N = 24


def ones(*shape, dtype=torch.float64, device=None):
    return torch.ones(*shape, dtype=dtype, device=device)


def dense(**options):
    return DenseAssociativeMemory(N, Polynomial(2), **options).double()


def hopfield():
    return HopfieldNetwork(N).double().store(ones(1, N))


MEMORIES = {"dense": lambda: dense(memories=2), "Hopfield": hopfield}
every_memory = pytest.mark.parametrize("make", MEMORIES.values(), ids=MEMORIES.keys())


def calls(memory):
    """Everything that takes states."""
    names = ("recall", "energy", "fields", "store", "predict", "loss", "fit")
    return [getattr(memory, name) for name in names if hasattr(memory, name)]


# ---------------------------------------------------------------------- states


@every_memory
@pytest.mark.parametrize(
    ("states", "texts"),
    [
        (ones(N), [r"shape (batch, 24), got (24,); give one state as x[None]"]),
        (ones(2, 4, 6), ["got (2, 4, 6); flatten them to (batch, N)"]),
        (ones(2, N + 1), ["expected 24 neurons, got 25"]),
        (
            0 * ones(2, N),
            ["expected ±1, got 0 among them; bits become states by states_from_bits(x)"],
        ),
        (0.5 * ones(2, N), ["expected ±1, got 0.5 among them"]),
        (math.nan * ones(2, N), ["expected ±1, got nan"]),
        (math.inf * ones(2, N), ["expected ±1, got inf"]),
        (ones(2, N).float(), ["the memory's torch.float64, got torch.float32; use .to(memory.d"]),
        (ones(2, N).long(), ["got torch.int64"]),
        (ones(2, N).bool(), ["got torch.bool"]),
        (ones(2, N, device="meta"), ["device cpu, got meta; use .to(memory.device)"]),
        (
            torch.zeros(3, 7, dtype=torch.int32),
            ["24 neurons, got 7", "got torch.int32", "expected ±1, got 0"],
        ),
        (
            torch.zeros(7, dtype=torch.float16, device="meta"),
            ["got (7,)", "got torch.float16", "got meta"],
        ),
    ],
    ids=lambda x: None if isinstance(x, torch.Tensor) else x[0],
)
def test_everything_wrong_with_states_is_said_at_once(make, states, texts):
    for call in calls(make()):
        with pytest.raises(ValueError, match=r"^(probes|states): ") as caught:
            call(states)
        assert all(text in str(caught.value) for text in texts), str(caught.value)


@every_memory
def test_states_that_are_no_tensors(make):
    for call in calls(make()):
        with pytest.raises(TypeError, match=r"expected a tensor \(batch, 24\), got list"):
            call([[1.0] * N])


def test_a_memory_on_another_device_says_so():
    for memory in (hopfield(), dense(memories=2)):
        with pytest.raises(ValueError, match="device meta, got cpu"):
            memory.to("meta").recall(ones(2, N))


def test_no_memories():
    for call in calls(dense()):
        if call.__name__ != "store":
            with pytest.raises(ValueError, match=r"memories: expected at least one.*store\(states"):
                call(ones(1, N))
    for call in (lambda m: m.classify(ones(1, N)), lambda m: m.as_ham()):
        with pytest.raises(ValueError, match="memories: expected at least one, got none"):
            call(dense(classes=2))


# ---------------------------------------------------------------------- recall


@every_memory
@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"max_steps": 0}, ValueError, "max_steps: expected a positive integer, got 0"),
        ({"max_steps": 1.5}, ValueError, r"max_steps: expected a positive integer, got 1\.5"),
        ({"updates": "async"}, TypeError, r"updates: expected Asynchronous\(\) or Sync.*got str"),
        ({"updates": Synchronous}, TypeError, "updates: expected"),
        ({"updates": Asynchronous(torch.arange(9))}, ValueError, "order: expected each.*got 9 of"),
        ({"on_failure": "stop"}, ValueError, "on_failure: expected 'warn'"),
        ({"clamped": [True] * N}, TypeError, "clamped: expected a boolean tensor, got list"),
        ({"clamped": torch.ones(N)}, TypeError, r"got torch\.float32; use mask\.bool\(\)"),
        ({"clamped": torch.ones(3).bool()}, ValueError, r"\(24,\) or \(2, 24\), got \(3,\)"),
        ({"clamped": torch.ones(N, 2).bool()}, ValueError, r"got \(24, 2\)"),
        ({"steps": 3}, TypeError, "unexpected keyword argument 'steps'"),
    ],
)
def test_arguments_of_recall(make, arguments, kind, message):
    with pytest.raises(kind, match=message):
        make().recall(ones(2, N), **arguments)


# ------------------------------------------------------------- constructors and arguments

MAKE = {
    "network": lambda **options: HopfieldNetwork(**{"size": 5} | options),
    "dense": lambda **options: DenseAssociativeMemory(**{"size": 5} | options),
    "Learning": Learning,
    "Polynomial": Polynomial,
    "Rectified": RectifiedPolynomial,
    "Leaky": lambda **options: LeakyRectifiedPolynomial(**{"n": 3} | options),
    "Normalised": Normalised,
    "Original": Original,
    "Normalised.at": Normalised().at,
    "Interacting": lambda **options: Interacting(**{"interaction": Polynomial(2)} | options),
    "as_ham of zeros": HopfieldNetwork(5).as_ham,
    "as_ham": hopfield().as_ham,
    "not convex": lambda: DenseAssociativeMemory(5, Polynomial(3), memories=1).as_ham(),
    "fit": lambda **options: dense(memories=2).fit(ones(1, N), **options),
    "loss": lambda **options: dense(memories=2).loss(ones(1, N), **options),
}
SIZE, NUMBER = "expected a positive integer", "expected a finite number"
# What is called, an argument, wrong values of it, and what is expected.
ARGUMENTS = [
    ("network", "size", (0, -1, 2.5, True, "3"), f"size: {SIZE}, got "),
    ("dense", "size", (0, 2.5, True), f"size: {SIZE}, got "),
    ("dense", "memories", (-1, torch.ones(2, 5)), "memories: expected an integer ≥ 0, got "),
    ("dense", "classes", (-1, "10"), "classes: expected an integer ≥ 0, got "),
    ("dense", "std", (-0.1, math.nan), f"std: {NUMBER} ≥ 0, got "),
    ("Learning", "rate", (0.0, math.inf), f"rate: {NUMBER} > 0, got "),
    ("Learning", "decay", (0.0, 1.1), f"decay: {NUMBER} > 0 and ≤ 1, got "),
    ("Learning", "momentum", (1.0, -0.1), f"momentum: {NUMBER} ≥ 0 and < 1, got "),
    ("Learning", "floor", (-1e-30, math.nan), f"floor: {NUMBER} ≥ 0, got "),
    ("Learning", "exponent", (0, 1.5, True), f"exponent: {SIZE} m, got "),
    ("Learning", "temperatures", ((1.0,), 1.0, ()), "temperatures: expected the first and the l"),
    ("Learning", "temperatures", ((1.0, 0.0), (-1.0, 1.0)), f"temperatures: {NUMBER} > 0, got "),
    ("Polynomial", "n", (0, -1, 2.5, 2.0, True, "3", None), f"n: {SIZE} up to 500, the inter"),
    ("Rectified", "n", (0, 501), f"n: {SIZE} up to 500, the interaction vertex, got "),
    ("Leaky", "n", (0, True), f"n: {SIZE} up to 500, the interaction vertex, got "),
    ("Leaky", "eps", (math.inf, math.nan), f"eps: {NUMBER}, got "),
    ("Normalised", "temperature", (0, -1.0, math.inf), f"temperature: {NUMBER} > 0, got "),
    ("Original", "temperature", (0, math.nan), f"temperature: {NUMBER} > 0, got "),
    ("Normalised.at", "temperature", (0,), f"temperature: {NUMBER} > 0, got 0"),
    ("Interacting", "inner", (0.0,), f"inner: {NUMBER} > 0, got 0.0"),
    ("Interacting", "interaction", (Polynomial(3), Polynomial(5)), "interaction: expected a conv"),
    (
        "not convex",
        None,
        (),
        "interaction: expected a convex function, got Polynomial(n=3); use an",
    ),
    ("as_ham of zeros", None, (), "weights: expected some that are not zero, got zeros; store(sta"),
    ("as_ham", "beta", (0.0,), f"beta: {NUMBER} > 0"),
    ("fit", "epochs", (-1, 1.5, True, "3", None), "epochs: expected an integer ≥ 0, got "),
    ("loss", "exponent", (0, -1, 1.5, True, "1"), f"exponent: {SIZE} m, got "),
]
KINDS = [
    ("network", "rule", ("hebbian", Hebbian), "rule: expected Hebbian(), PseudoInverse() or"),
    ("dense", "interaction", (3, Exponential), "interaction: expected an interaction function s"),
    ("dense", "scaling", ("normalised", Original), "scaling: expected Normalised() or Original()"),
    ("dense", "beta", (1.0,), "unexpected keyword argument 'beta'"),
    ("Learning", "rate", ("fast", None), f"rate: {NUMBER} > 0, got "),
    ("Leaky", "eps", ("0.1", None), f"eps: {NUMBER}, got "),
    ("Normalised", "temperature", ("1", None, True), f"temperature: {NUMBER} > 0, got "),
]


@pytest.mark.parametrize(
    ("call", "name", "values", "message", "kind"),
    [(*row, ValueError) for row in ARGUMENTS] + [(*row, TypeError) for row in KINDS],
)
def test_wrong_arguments_say_what_is_expected(call, name, values, message, kind):
    for arguments in [{name: value} for value in values] or [{}]:
        with pytest.raises(kind, match=re.escape(message)):
            MAKE[call](**arguments)


@pytest.mark.parametrize(
    ("labels", "kind", "texts"),
    [
        ([0, 1], TypeError, ["expected a tensor (2,), got list"]),
        (torch.tensor([0, 3]), ValueError, ["expected classes 0 to 2, got 3 among them"]),
        (torch.tensor([0, -1]), ValueError, ["expected classes 0 to 2, got -1 among them"]),
        (torch.tensor([0.0, 1.0]), ValueError, ["torch.int64, got torch.float32; use .long()"]),
        # These two would broadcast to a wrong loss.
        (torch.tensor([0]), ValueError, ["expected shape (2,), got (1,)"]),
        (torch.tensor([[0], [1]]), ValueError, ["expected shape (2,), got (2, 1)"]),
        (torch.tensor([5, 1, 1]), ValueError, ["(2,), got (3,)", "classes 0 to 2, got 5"]),
    ],
    ids=str,
)
def test_labels(labels, kind, texts):
    memory = dense(memories=2, classes=3)
    with pytest.raises(kind, match=r"^labels: ") as caught:
        memory.class_loss(ones(2, N), labels)
    assert all(text in str(caught.value) for text in texts), str(caught.value)


@pytest.mark.parametrize("name", ["classify", "class_loss"])
def test_inputs_to_classify(name):
    memory, labels = dense(memories=2, classes=3), torch.tensor([0, 1])

    def call(memory, inputs):
        method = getattr(memory, name)
        return method(inputs, labels) if name == "class_loss" else method(inputs)

    call(memory, 0.3 * ones(2, N))  # numbers between the two states are no mistake
    with pytest.raises(ValueError, match=r"classes: expected a memory with class neurons"):
        call(dense(memories=2), ones(2, N))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"inputs: expected finite numbers, got {bad} among"):
            call(memory, bad * ones(2, N))
    with pytest.raises(ValueError, match=r"24 neurons, got 27.*torch\.float64, got torch\.float32"):
        call(memory, ones(2, N + 3).float())


def test_overflow_is_an_error_and_no_number():
    size = 10_000
    memory = DenseAssociativeMemory(size, Polynomial(30), scaling=Original())
    memory.store(torch.ones(1, size))
    x = torch.ones(2, size)
    calls = {
        "energy": lambda m: m.energy(x),
        "prediction": lambda m: m.predict(x),
    }
    for what, call in calls.items():
        with pytest.raises(OverflowError, match=rf"{what}: Polynomial\(n=30\) of similarities up"):
            call(memory)
    assert memory.fields(x).isnan().all()
    # 100³⁰ is too much for float32 alone, and fit computes in float64.
    y = torch.ones(1, 100)
    small = DenseAssociativeMemory(100, Polynomial(30), scaling=Original()).store(y)
    for call in (small.loss, small.predict, small.energy):
        with pytest.raises(OverflowError, match=r"use scaling=Normalised\(\)"):
            call(y)
    assert small.fit(y, epochs=1).isfinite().all()
    memory.scaling = Normalised()
    for call in calls.values():
        assert call(memory).isfinite().all()
    assert (memory.fields(x) > 0).all()


def test_an_exponential_that_overflows():
    memory = DenseAssociativeMemory(800, Exponential(), scaling=Original()).double()
    memory.store(ones(1, 800))
    with pytest.raises(OverflowError, match=r"energy: Exponential\(\) of similarities up to 800"):
        memory.energy(ones(1, 800))
    start = memory.memories.detach().clone()
    with pytest.raises(OverflowError, match="loss: "):
        memory.fit(ones(1, 800), epochs=2)
    assert torch.equal(memory.memories, start)


OVERFLOWS = [
    (Polynomial(100), Original()),
    (RectifiedPolynomial(100), Original()),
    (LeakyRectifiedPolynomial(100), Original()),
    (Polynomial(200), Original(0.5)),
    (Exponential(), Normalised(1e-3)),
]


@pytest.mark.parametrize(("interaction", "scaling"), OVERFLOWS, ids=str)
def test_what_overflows_is_never_a_number(interaction, scaling):
    size, classes = 12, 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (6, size), generator=generator) * 2.0 - 1
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    memory = DenseAssociativeMemory(size, interaction, scaling=scaling).store(x)
    for path in (memory.energy, memory.predict, memory.loss):
        with pytest.raises(OverflowError, match="overflows"):
            path(x)
    answers = torch.ones(6, classes)
    memory = DenseAssociativeMemory(size, interaction, scaling=scaling, classes=classes)
    memory.store(torch.cat([x, answers], 1))
    for path in (memory.classify, lambda x: memory.class_loss(x, labels)):
        with pytest.raises(OverflowError, match="overflows"):
            path(x)
    layered = FeedForward(memory)
    for path in (layered.classify, lambda x: layered.class_loss(x, labels)):
        with pytest.raises(OverflowError, match="overflows"):
            path(x)


def test_a_factor_that_overflows_is_never_a_number():
    """Of states that say nothing of each other, whose margins are zero, it would be NaN."""
    memory = DenseAssociativeMemory(2, Polynomial(200), scaling=Original(0.5)).store(
        torch.tensor([[1.0, 1.0]])
    )
    memory.memories.data.fill_(0.0)
    for path in (memory.predict, memory.loss):
        with pytest.raises(OverflowError, match="factor"):
            path(torch.ones(1, 2))


@pytest.mark.parametrize("function", [Polynomial(43), RectifiedPolynomial(43)], ids=str)
def test_an_infinite_margin_is_no_perfect_prediction(function):
    """F overflows at a state that is stored, and with a neuron turned over does not."""
    memory = DenseAssociativeMemory(8, function, scaling=Original()).store(torch.ones(1, 8))
    with pytest.raises(OverflowError, match="overflows"):
        memory.loss(torch.ones(1, 8))
    memory = DenseAssociativeMemory(7, function, scaling=Original(), classes=1)
    memory.store(torch.ones(1, 8))
    with pytest.raises(OverflowError, match="overflows"):
        memory.class_loss(torch.ones(1, 7), torch.tensor([0]))
