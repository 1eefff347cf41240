"""Recall: neurons flip until the state is stable, and what is reported when it never is."""

import itertools
import warnings

import pytest
import torch

from hamdeq import ConvergenceError, ConvergenceWarning, Status
from hamdeq.memories import (
    Asynchronous,
    BinaryMemory,
    DenseAssociativeMemory,
    Exponential,
    HopfieldNetwork,
    LeakyRectifiedPolynomial,
    Normalised,
    Original,
    Polynomial,
    PseudoInverse,
    RectifiedPolynomial,
    Storkey,
    Synchronous,
)
from hamdeq.testing import normal

N = 24


def signs(*shape, seed=0, dtype=torch.float64):
    return torch.where(normal(*shape, seed=seed) >= 0, 1.0, -1.0).to(dtype)


def learned(interaction, scaling=None):
    """Memories that are no states."""
    memory = DenseAssociativeMemory(N, interaction, scaling=scaling, memories=9).double()
    with torch.no_grad():
        memory.memories.copy_(normal(9, N, seed=4).clamp(-1, 1))
    return memory


PATTERNS = signs(9, N, seed=2)
MEMORIES = {
    "Hebbian": lambda: HopfieldNetwork(N).double().store(PATTERNS),
    "PseudoInverse": lambda: HopfieldNetwork(N, PseudoInverse()).double().store(PATTERNS),
    "as many as neurons": lambda: HopfieldNetwork(N, PseudoInverse()).double().store(signs(N, N)),
    "Storkey": lambda: HopfieldNetwork(N, Storkey()).double().store(PATTERNS),
    "Polynomial(2)": lambda: DenseAssociativeMemory(N, Polynomial(2)).double().store(PATTERNS),
    "Polynomial(3)": lambda: learned(Polynomial(3)),
    "RectifiedPolynomial(20)": lambda: learned(RectifiedPolynomial(20)),
    "Leaky": lambda: learned(LeakyRectifiedPolynomial(3, 0.5), Normalised(0.5)),
    "Exponential": lambda: learned(Exponential(), Normalised(0.3)),
    "Original": lambda: learned(Polynomial(3), Original()),
}
every_memory = pytest.mark.parametrize("make", MEMORIES.values(), ids=MEMORIES.keys())
# Integers, a function with a scale inside and a leak, and the original formulation.
some_memories = pytest.mark.parametrize(
    "make", [MEMORIES[name] for name in ("Hebbian", "Leaky", "Original")]
)
every_update = pytest.mark.parametrize("updates", [Asynchronous(), Synchronous()], ids=repr)


def wanted(memory, x, clamped=None):
    """Which neurons are not as their field has it."""
    turned = torch.where(memory.fields(x) >= 0, 1.0, -1.0) != x
    return turned if clamped is None else turned & ~clamped


# ------------------------------------------------------------ asynchronous


@every_memory
def test_energy_never_rises_and_every_state_converges(make):
    memory = make()
    x = signs(20, N, seed=7)
    energy = [memory.energy(x)]
    for step in range(60):
        # One step a call, in an order of our own: what recall makes of its steps is seen outside.
        order = torch.randperm(N, generator=torch.Generator().manual_seed(step))
        updates = Asynchronous(order)
        solution = memory.recall(x, updates=updates, max_steps=1, on_failure="ignore")
        assert torch.equal(solution.trace[0] > 0, (solution.value != x).any(1))
        x = solution.value
        energy.append(memory.energy(x))
        if not solution.trace.any():
            break
    assert 2 < len(energy) < 40
    assert not wanted(memory, x).any()
    # The energy itself is a sum with rounding errors.
    scale = 1e-13 * torch.stack(energy).abs().max()
    for before, after in itertools.pairwise(energy):
        assert (after <= before + scale).all()
    assert (energy[-1] < energy[0] - scale).all()


@every_memory
def test_each_neuron_sees_those_that_turned_before_it(make):
    """A sweep from scratch: fields anew for every neuron."""
    memory = make()
    x = signs(10, N, seed=8)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    expected = x.clone()
    for i in order.tolist():
        expected[:, i] = torch.where(memory.fields(expected)[:, i] >= 0, 1.0, -1.0)
    solution = memory.recall(x, updates=Asynchronous(order), max_steps=1, on_failure="ignore")
    assert torch.equal(solution.value, expected)
    assert (expected != x).any(1).all()


def test_random_orders_follow_the_seed():
    memory, x = MEMORIES["Hebbian"](), signs(30, N, seed=9)
    results = [memory.recall(x, updates=Asynchronous(seed=s)).value for s in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    state = torch.get_rng_state()
    memory.recall(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_order_may_repeat_neurons_but_leave_out_none():
    memory, x = MEMORIES["Hebbian"](), signs(5, N, seed=9)
    order = torch.cat([torch.arange(N), torch.arange(N)])
    twice = memory.recall(x, updates=Asynchronous(order), max_steps=1, on_failure="ignore").value
    once = Asynchronous(torch.arange(N))
    assert torch.equal(
        twice, memory.recall(x, updates=once, max_steps=2, on_failure="ignore").value
    )
    for wrong in (torch.arange(N - 1), torch.arange(1, N + 1), torch.arange(N) - 1):
        with pytest.raises(ValueError, match="order: expected each of the neurons 0 to 23"):
            memory.recall(x, updates=Asynchronous(wrong))


# ------------------------------------------------------------- synchronous


class Table(BinaryMemory):
    """A memory that follows any map of states, given by the number of each state's successor."""

    _stored = "successor"

    def __init__(self, successor):
        super().__init__()
        self.register_buffer("successor", torch.tensor(successor))
        self.size = (len(successor) - 1).bit_length()

    dtype = torch.float64  # type: ignore[assignment]

    def store(self, states):
        raise NotImplementedError

    def energy(self, states):
        raise NotImplementedError

    def states(self, numbers):
        bits = torch.as_tensor(numbers)[:, None] >> torch.arange(self.size) & 1
        return (2 * bits - 1).double()

    def numbers(self, states):
        return ((states > 0) * 2 ** torch.arange(self.size)).sum(1)

    def fields(self, states):
        return self.states(self.successor[self.numbers(states)])

    def _walk(self, states):
        raise NotImplementedError


def test_two_neurons_that_oppose_each_other_cycle():
    network = HopfieldNetwork(2).store(torch.tensor([[1.0, -1.0]]))
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    solution = network.recall(x, updates=Synchronous(), on_failure="ignore")
    assert solution.status.tolist() == [Status.CYCLE, Status.CONVERGED]
    assert solution.converged.tolist() == [False, True]
    assert solution.value[0].abs().tolist() == [1.0, 1.0]
    assert solution.value[0, 0] == solution.value[0, 1]  # a state of the cycle
    assert solution.residual.tolist() == [2.0, 0.0]
    # One at a time, they converge.
    assert network.recall(x).converged.all()


@pytest.mark.parametrize("length", [2, 5, 13])
@pytest.mark.parametrize("tail", [0, 4])
def test_cycles_of_any_length_are_found(length, tail):
    successor = [*range(1, tail + length), tail] + [15 + 2] * 15
    successor = (successor + [31] * 32)[:32]
    memory = Table(successor)
    x = memory.states([0, 31])
    solution = memory.recall(x, updates=Synchronous(), on_failure="ignore")
    assert solution.status.tolist() == [Status.CYCLE, Status.CONVERGED]
    assert int(memory.numbers(solution.value)[0]) in range(tail, tail + length)
    assert solution.steps[0] <= 3 * (length + tail) + 1
    with pytest.warns(ConvergenceWarning, match=r"1 of 2 samples.*updates=Asynchronous\(\)"):
        memory.recall(x, updates=Synchronous())


def test_a_sample_that_converges_late_is_no_cycle():
    memory = Table([*range(1, 32), 31])
    solution = memory.recall(memory.states(range(32)), updates=Synchronous())
    assert (solution.status == Status.CONVERGED).all()
    assert (memory.numbers(solution.value) == 31).all()
    assert solution.steps.tolist() == list(range(32, 0, -1))


@every_memory
def test_one_synchronous_step_is_the_sign_of_the_fields(make):
    memory, x = make(), signs(10, N, seed=8)
    solution = memory.recall(x, updates=Synchronous(), max_steps=1, on_failure="ignore")
    assert torch.equal(solution.value, torch.where(memory.fields(x) >= 0, 1.0, -1.0))


# ------------------------------------------------------- clamped neurons, batches


@every_update
@some_memories
def test_clamped_neurons_keep_their_state_and_the_others_converge(make, updates):
    memory, x = make(), signs(8, N, seed=10)
    each = normal(8, N, seed=11) > 0.5
    for clamped in (each[0], each):
        solution = memory.recall(x, clamped=clamped, updates=updates, on_failure="ignore")
        mask = clamped.expand_as(x)
        assert torch.equal(solution.value[mask], x[mask])
        rows = solution.converged
        assert rows.any()
        assert not wanted(memory, solution.value, mask)[rows].any()
    for i in (0, 5):
        alone = memory.recall(x[i : i + 1], clamped=each[i], updates=updates, on_failure="ignore")
        assert torch.equal(solution.value[i], alone.value[0])
    free = memory.recall(x, updates=updates, on_failure="ignore").value
    assert (free != x)[each].any()  # they would have flipped
    solution = memory.recall(x, clamped=torch.ones(N, dtype=torch.bool), updates=updates)
    assert torch.equal(solution.value, x)
    assert solution.steps.tolist() == [1] * 8


@every_update
@some_memories
def test_a_sample_does_not_depend_on_its_batch(make, updates):
    memory, x = make(), signs(5, N, seed=12)
    together = memory.recall(x, updates=updates, on_failure="ignore")
    for i in range(len(x)):
        alone = memory.recall(x[i : i + 1], updates=updates, on_failure="ignore")
        for name in ("value", "residual", "steps", "converged", "status"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i]), name
        steps = int(alone.steps)
        assert torch.equal(alone.trace[:, 0], together.trace[:steps, i])
    empty = memory.recall(x[:0], updates=updates)
    assert empty.value.shape == (0, N)
    assert empty.steps.shape == (0,)
    assert empty.trace.shape == (0, 0)


@every_update
@some_memories
def test_what_is_given_is_not_written_to(make, updates):
    memory, x, clamped = make(), signs(12, N, seed=12), normal(12, N) > 1
    order = torch.arange(N)
    if isinstance(updates, Asynchronous):
        updates = Asynchronous(order)
    before = [t.clone() for t in (x, clamped, order, *memory.state_dict().values())]
    solution = memory.recall(x, clamped=clamped, updates=updates, on_failure="ignore")
    for a, b in zip(before, (x, clamped, order, *memory.state_dict().values()), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(solution.value, x)
    solution.value.zero_()
    assert x.all()
    assert not solution.value.requires_grad


# --------------------------------------------------------------- the Solution


@every_update
@some_memories
def test_residual_trace_and_status_describe_the_value(make, updates):
    memory, x = make(), signs(12, N, seed=13)
    for max_steps in (1, 3, 100):
        s = memory.recall(x, updates=updates, max_steps=max_steps, on_failure="ignore")
        n = wanted(memory, s.value).sum(1)
        # ‖f(x) − x‖/‖f(x)‖ of n neurons that want to turn, each by 2.
        torch.testing.assert_close(s.residual, 2 * (n / N).sqrt().double(), rtol=1e-7, atol=0)
        assert torch.equal(s.converged, n == 0)
        assert torch.equal(s.converged, s.status == Status.CONVERGED)
        assert s.n_evals == len(s.trace) == s.steps.max() <= max_steps
        assert (s.value.abs() == 1).all()
        for i in range(len(x)):
            # After a sample has stopped, the trace is that of its value.
            assert (s.trace[s.steps[i] :, i] == s.residual[i]).all()
            if s.converged[i] and s.steps[i] < max_steps:
                assert s.trace[s.steps[i] - 1, i] == 0
                assert (s.trace[: s.steps[i] - 1, i] > 0).all()
        if max_steps == 1:
            moved = (s.value != x).sum(1)
            torch.testing.assert_close(s.trace[0], 2 * (moved / N).sqrt().double())


def test_a_stable_state_takes_one_step_without_a_warning():
    memory = DenseAssociativeMemory(N, Polynomial(3)).double().store(PATTERNS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = memory.recall(PATTERNS)
    assert torch.equal(solution.value, PATTERNS)
    assert solution.steps.tolist() == [1] * len(PATTERNS)
    assert not solution.residual.any()


def test_running_out_of_steps_warns_or_raises():
    memory = Table([*range(1, 32), 31])
    x = memory.states([0, 30])
    with pytest.warns(ConvergenceWarning, match="1 of 2 samples: neurons were still flipping"):
        solution = memory.recall(x, updates=Synchronous(), max_steps=5)
    assert solution.status.tolist() == [Status.MAX_STEPS, Status.CONVERGED]
    assert memory.numbers(solution.value).tolist() == [5, 31]
    with pytest.raises(ConvergenceError, match="recall not reached"):
        memory.recall(x, updates=Synchronous(), max_steps=5, on_failure="raise")
    # At rest with the very last step, though no step was left to find that.
    late = memory.recall(memory.states([26]), updates=Synchronous(), max_steps=5)
    assert late.status.tolist() == [Status.CONVERGED]


@every_update
def test_overflow_is_reported_and_the_state_before_is_kept(updates):
    size, x = 100, signs(3, 100, dtype=torch.float32)
    patterns = signs(2, 100, seed=1, dtype=torch.float32)
    x[0] = patterns[0]  # 100²⁰ overflows float32, random similarities of about 10 do not
    mask = torch.ones(3, size, dtype=torch.bool)  # nor do they grow
    mask[0] = False
    memory = DenseAssociativeMemory(size, Polynomial(20), scaling=Original()).store(patterns)
    with pytest.warns(ConvergenceWarning, match=r"1 of 3.*overflows.*scaling=Normalised\(\)"):
        solution = memory.recall(x, clamped=mask, updates=updates)
    assert solution.status[0] == Status.OVERFLOW
    assert solution.residual[0].isnan()
    assert solution.converged.tolist() == [False, True, True]
    assert torch.equal(solution.value, x)
    normalised = DenseAssociativeMemory(size, Polynomial(20)).store(patterns)
    assert torch.equal(normalised.recall(x, updates=updates).value[0], x[0])
