"""What binary memories refuse, and what they say."""

import math

import pytest
import torch

from hamdeq.memories import (
    Asynchronous,
    DenseAssociativeMemory,
    Exponential,
    HopfieldNetwork,
    Learning,
    Normalised,
    Original,
    Polynomial,
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
        (0 * ones(2, N), ["expected ±1, got 0 among them; bits become states by 2 * x - 1"]),
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
        ({"updates": "async"}, TypeError, r"updates: expected Asynchronous\(\) or .*'async'"),
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


# ------------------------------------------------- the dense associative memory


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"size": 0}, ValueError, "size: expected an integer of at least 1, got 0"),
        ({"size": 2.5}, ValueError, r"size: expected an integer of at least 1, got 2\.5"),
        ({"size": True}, ValueError, "size: expected an integer"),
        ({"memories": -1}, ValueError, "memories: expected an integer of at least 0, got -1"),
        ({"memories": torch.ones(2, 5)}, ValueError, "memories: expected an integer"),
        ({"classes": "10"}, ValueError, "classes: expected an integer of at least 0, got '10'"),
        ({"interaction": 3}, TypeError, r"interaction: .*such as RectifiedPolynomial\(3\), got 3"),
        ({"interaction": Exponential}, TypeError, "interaction: expected"),
        ({"scaling": "normalised"}, TypeError, r"scaling: expected Normalised\(\) or Original\(\)"),
        ({"scaling": Original}, TypeError, "scaling: expected"),
        ({"std": -0.1}, ValueError, r"std: expected a number ≥ 0, got -0\.1"),
        ({"std": math.nan}, ValueError, "std: expected"),
        ({"beta": 1.0}, TypeError, "unexpected keyword argument 'beta'"),
    ],
)
def test_arguments_of_the_dense_memory(arguments, kind, message):
    with pytest.raises(kind, match=message):
        DenseAssociativeMemory(**{"size": 5, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.0}, "rate: expected a finite number > 0, got 0"),
        ({"rate": math.inf}, "rate: expected"),
        ({"decay": 0.0}, "decay: expected 0 < decay ≤ 1"),
        ({"decay": 1.1}, "decay: expected"),
        ({"momentum": 1.0}, "momentum: expected 0 ≤ momentum < 1"),
        ({"momentum": -0.1}, "momentum: expected"),
        ({"exponent": 0}, "exponent: expected a positive integer m, got 0"),
        ({"exponent": 1.5}, "exponent: expected"),
        ({"exponent": True}, "exponent: expected"),
        ({"temperatures": (1.0, 0.0)}, "temperatures: expected finite numbers > 0, got 0"),
        ({"temperatures": (1.0,)}, "temperatures: expected the first and the last"),
        ({"temperatures": 1.0}, "temperatures: expected the first and the last"),
        ({"temperatures": ()}, "temperatures: expected the first and the last"),
    ],
)
def test_arguments_of_learning(arguments, message):
    with pytest.raises(ValueError, match=message):
        Learning(**arguments)


@pytest.mark.parametrize("epochs", [-1, 1.5, True, "3", None])
def test_epochs_that_would_never_end(epochs):
    with pytest.raises(ValueError, match="epochs: expected an integer ≥ 0, got "):
        dense(memories=2).fit(ones(1, N), epochs=epochs)


def test_exponents_of_the_loss():
    for exponent in (0, -1, 1.5, True, "1"):
        with pytest.raises(ValueError, match="exponent: expected a positive integer m, got"):
            dense(memories=2).loss(ones(1, N), exponent)


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
