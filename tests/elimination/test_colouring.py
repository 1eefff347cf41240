"""colouring: classes of layers without a synapse inside, the first of them to be eliminated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from custom_terms import Squared, Triple
from hypothesis import given, settings
from hypothesis import strategies as st

from hamdeq import (
    HAM,
    Bias,
    Dense,
    Identity,
    Lateral,
    MaxPool2d,
    Neurons,
    SelfAttention,
    Sigmoid,
    clamp,
    colouring,
    eliminate,
    two_colouring,
)
from hamdeq.energy.model import Connection

# The same examples in every run, and no limit of time on a shared machine.
FIXED = settings(derandomize=True, deadline=None, max_examples=150, database=None)


def graph(sizes: dict[str, int], edges: Sequence[Any], lateral: Sequence[str] = ()) -> HAM:
    """Layers with a bias each; synapses of two layers or three; some that act on themselves."""
    neurons = {name: Neurons(n, Sigmoid()) for name, n in sizes.items()}
    connections: list[Connection] = [((name,), Bias(n)) for name, n in sizes.items()]
    for edge in edges:
        shapes = [sizes[name] for name in edge]
        kind = {1: Bias, 2: Dense, 3: Triple}[len(edge)]
        connections.append((tuple(edge), kind(*shapes)))
    connections += [((name, name), Dense(sizes[name], sizes[name])) for name in lateral]
    return HAM(neurons, connections)


def width(ham: HAM, names: Sequence[str]) -> int:
    return sum(math.prod(ham.layer(a).shape) for a in names)


def parts(names: Sequence[str], links: Sequence[set[str]]) -> list[set[str]]:
    """Connected parts, by merging: independent of the package's search."""
    found = [{name} for name in names]
    for link in links:
        joined = [p for p in found if p & link]
        found = [p for p in found if p not in joined] + [set().union(*joined)]
    return found


@st.composite
def hypergraphs(draw: Any) -> tuple[HAM, list[str], list[str]]:
    """A memory, the layers that are clamped, and those that act on themselves."""
    names = [f"n{i}" for i in range(draw(st.integers(1, 7)))]
    sizes = {name: draw(st.integers(1, 4)) for name in names}
    pairs = [e for k in (2, 3) for e in itertools.combinations(names, k)]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=9)) if pairs else []
    lateral = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    clamped = draw(st.lists(st.sampled_from(names), max_size=len(names), unique=True))
    return graph(sizes, edges, lateral), clamped, lateral


@FIXED
@given(hypergraphs())
def test_random_hypergraphs(drawn: tuple[HAM, list[str], list[str]]) -> None:
    ham, clamped, lateral = drawn
    classes = colouring(ham, clamped=clamped)
    free = [a for a in ham.layers if a not in clamped]
    selfish = [a for a in lateral if a in free]
    # Every free layer is in one class, in the memory's order.
    assert sorted(itertools.chain(*classes)) == sorted(free)
    assert all([*side] == [a for a in ham.layers if a in side] for side in classes)
    assert all(classes[1:])
    # No synapse joins two layers of one class.
    links = [set(layers) - set(clamped) for layers, _ in ham.connections]
    for side, link in itertools.product(classes, links):
        assert len(link & set(side)) <= 1
    # The first has no layers that act on themselves, and of each part the most neurons it can.
    first = set(classes[0])
    assert not first & set(selfish)
    for part in parts(free, [link for link in links if link]):
        for side in classes[1:]:
            rival = part & set(side) - set(selfish)
            assert width(ham, [*(part & first)]) >= width(ham, [*rival])
        assert part & first or part <= set(selfish)
    # Few: no more than a greedy colouring may need, and one for those that act on themselves.
    degree = max((len(set().union(*(k for k in links if a in k), {a})) for a in free), default=0)
    assert len(classes) <= max(1, degree + bool(selfish))
    # It is what eliminate asks for, and each class is brought to its minimum.
    states = {a: torch.zeros(1, *ham.layer(a).shape) for a in clamped}
    model = clamp(ham, states) if clamped else ham
    reduced = eliminate(model, classes[0], colours=classes[1:])
    assert reduced.descends == (not selfish)
    # Where two colours are enough they are those of even-odd splitting.
    try:
        keep, hide = two_colouring(ham, clamped=clamped)
    except ValueError:
        assert len(classes) > 2 or selfish
    else:
        assert classes == (hide, *([keep] if keep else []))


@pytest.mark.parametrize("size", [3, [5, 2, 4, 4, 2, 3, 1]])
@pytest.mark.parametrize("n", range(2, 8))
def test_chains(n: int, size: Any) -> None:
    """Layers of equal width, too: of two choices the same."""
    ham = HAM.chain([size] * n if isinstance(size, int) else size[:n])
    for clamped in ((), ("input",), ("output",), ("input", "output")):
        keep, hide = two_colouring(ham, clamped=clamped)
        assert colouring(ham, clamped=clamped) == (hide, *([keep] if keep else []))


def test_complete_graphs_have_as_many_colours_as_layers() -> None:
    for n in range(1, 6):
        sizes = {f"n{i}": 1 + (3 * i) % 5 for i in range(n)}
        classes = colouring(graph(sizes, list(itertools.combinations(sizes, 2))))
        assert sorted(map(len, classes)) == [1] * n
        assert sizes[classes[0][0]] == max(sizes.values())


def test_the_widest_colour_is_first() -> None:
    edges = ["ab", "bc", "ca"]
    for sizes, first in (((5, 3, 4), "a"), ((3, 5, 4), "b"), ((3, 4, 5), "c")):
        ham = graph(dict(zip("abc", sizes, strict=True)), edges)
        assert colouring(ham)[0] == (first,)
    # Five in a ring: of three colours one has two layers.
    ring = graph(dict.fromkeys("abcde", 2), ["ab", "bc", "cd", "de", "ea"])
    assert sorted(map(len, colouring(ring))) == [1, 2, 2]
    assert len(colouring(ring)[0]) == 2


def test_each_part_has_its_own_widest_colour() -> None:
    ham = graph({"a": 1, "b": 9, "c": 1, "d": 2, "e": 3, "f": 4}, ["ab", "ac", "de", "ef", "fd"])
    assert colouring(ham) == (("b", "c", "f"), ("a", "d"), ("e",))
    # Without synapses all layers are one colour; with all of them clamped none is left.
    alone = graph({"a": 1, "b": 2}, [])
    assert colouring(alone) == (("a", "b"),)
    assert colouring(alone, clamped=("a", "b")) == ((),)


def test_clamped_layers_connect_nothing() -> None:
    ham = graph({"a": 5, "b": 3, "c": 4}, ["abc"])
    assert len(colouring(ham)) == 3
    assert colouring(ham, clamped=("a",)) == (("c",), ("b",))
    assert colouring(ham, clamped=("a", "c")) == (("b",),)


def test_layers_that_act_on_themselves_are_not_first() -> None:
    image, pooled = (1, 4, 4), (1, 2, 2)
    sigmoid = Sigmoid()
    pooling = HAM(
        {"image": Neurons(image, sigmoid), "pooled": Neurons(pooled, sigmoid)},
        [(("image", "pooled"), MaxPool2d(2))],
    )
    # The image is wider, but its maximum not linear.
    assert colouring(pooling) == (("pooled",), ("image",))
    assert colouring(pooling, clamped=("pooled",)) == ((), ("image",))
    assert colouring(pooling, clamped=("image",)) == (("pooled",),)
    lateral = HAM(
        {"a": Neurons(9, sigmoid), "b": Neurons(2, sigmoid), "c": Neurons(3, sigmoid)},
        [(("a",), Lateral(9)), (("a", "b"), Dense(9, 2)), (("c", "b"), Dense(3, 2))],
    )
    # a and c are of one colour, of which c alone can be eliminated.
    assert colouring(lateral) == (("c",), ("b",), ("a",))
    tokens = HAM(
        {"tokens": Neurons((3, 4), Identity()), "b": Neurons(2, sigmoid)},
        [(("tokens",), SelfAttention(4, 2, 3)), (("b",), Bias(2))],
    )
    assert colouring(tokens) == (("b",), ("tokens",))
    assert colouring(tokens, clamped=("b",)) == ((), ("tokens",))
    squared = HAM(
        {"a": Neurons(3, sigmoid), "b": Neurons(2, sigmoid)}, [(("a", "b"), Squared(3, 2))]
    )
    first, *others = colouring(squared)
    assert (first, sorted(others)) == ((), [("a",), ("b",)])


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown layer 'inputs': this HAM has \['input'"):
        colouring(HAM.chain([3, 2]), clamped=("inputs",))
    with pytest.raises(TypeError, match="got the string 'input'"):
        colouring(HAM.chain([3, 2]), clamped="input")


@pytest.mark.parametrize(
    "colours",
    [[["b"]], [["b"], ["c"], ["b"]], [["a"], ["b"], ["c"]], [["b", "c", "d"]], [], [["b"], ["b"]]],
    ids=str,
)
def test_colours_that_are_not_the_remaining_layers_are_refused(colours: Any) -> None:
    ham = graph({"a": 5, "b": 3, "c": 4}, ["ab", "bc", "ca"])
    with pytest.raises(ValueError, match=r"colours: expected each of \['b', 'c'\] in one of them"):
        eliminate(ham, ("a",), colours=colours)
