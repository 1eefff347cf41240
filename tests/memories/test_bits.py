"""States of 0 and 1: converted when asked, and refused otherwise."""

import re

import pytest
import torch

from hamdeq.memories import (
    DenseAssociativeMemory,
    HopfieldNetwork,
    PseudoInverse,
    RectifiedPolynomial,
    Storkey,
    bits_from_states,
    states_from_bits,
)

# An example with five neurons: what is stored, and a query of which three bits are observed.
STORED = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 1, 0, 1], [1, 1, 0, 1, 0]])
QUERY = torch.tensor([[1, 0, 1, 1, 1]])
OBSERVED = torch.tensor([True, True, True, False, False])


def retrieved(memory, stored=STORED):
    memory.store(states_from_bits(stored))
    found = memory.recall(states_from_bits(QUERY), clamped=OBSERVED)
    assert found.converged.all()
    return bits_from_states(found.value)[0].tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: HopfieldNetwork(5, PseudoInverse()),
        lambda: HopfieldNetwork(5, Storkey()),
        lambda: DenseAssociativeMemory(5, RectifiedPolynomial(3)),
    ],
    ids=["PseudoInverse", "Storkey", "dense"],
)
def test_the_example_of_five_neurons_retrieves_its_first_pattern(make):
    assert retrieved(make()) == [1, 0, 1, 0, 0]


def test_hebbs_rule_has_no_room_for_the_third_pattern_of_the_example():
    assert retrieved(HopfieldNetwork(5), STORED[:2]) == [1, 0, 1, 0, 0]
    assert retrieved(HopfieldNetwork(5)) == [1, 0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float16])
def test_bits_become_states_and_come_back(dtype):
    states = states_from_bits(STORED.to(dtype))
    assert states.dtype == torch.float32
    assert states[0].tolist() == [1.0, -1.0, 1.0, -1.0, -1.0]
    assert torch.equal(bits_from_states(states), STORED)
    assert states_from_bits(STORED.to(dtype), torch.float64).dtype == torch.float64


def test_a_network_of_bits_has_half_the_sum_of_the_weights_as_threshold():
    network = HopfieldNetwork(5).store(states_from_bits(STORED))
    bits = torch.cartesian_prod(*[torch.tensor([0, 1])] * 5)
    fields, threshold = bits.float() @ network.weights, network.weights.sum(0) / 2
    assert torch.equal(fields >= threshold, network.fields(states_from_bits(bits)) >= 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: states_from_bits(torch.tensor([1, 2])), "bits: expected 0 and 1, got 2 among"),
        (lambda: states_from_bits(torch.tensor([1, -1])), "got -1 among them; these are states"),
        (lambda: states_from_bits(torch.tensor([torch.nan])), "bits: expected 0 and 1, got nan"),
        (lambda: bits_from_states(STORED), "states: expected ±1, got 0 among them; these are bits"),
        (lambda: bits_from_states(STORED.bool()), "states: expected ±1, got booleans"),
        (lambda: HopfieldNetwork(5).store(STORED.float()), "bits become states by states_from_b"),
    ],
    ids=range(6),
)
def test_what_is_neither_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
    with pytest.raises(TypeError, match="bits: expected a tensor of 0 and 1, got list"):
        states_from_bits([0, 1])
