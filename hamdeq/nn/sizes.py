"""The sizes of a Hopfield layer, derived and checked once."""

from __future__ import annotations

from dataclasses import dataclass, field

from hamdeq._checks import integer, whole

__all__ = ["Sizes", "positive_size"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the patterns, and of the space in which they are associated.

    Args:
        state: size of the input's state patterns; None where nothing is projected.
        stored: size of the input's stored patterns, default ``state``.
        projection: size of the input's pattern projections, default ``state``.
        hidden: d, size of a head's association space, default ``state // heads``.
        pattern: p, size of what a head reads out, default ``hidden``.
        output: size of the result, default ``state``.
        heads: the number of heads H.
        state_static, stored_static, projection_static: whether these patterns enter every head as
            they are, without a projection.
        connected: whether pattern projections go through the stored patterns' projection first.
        out_projection: whether the heads' results are projected to ``output``.

    Attributes:
        joint: whether one matrix holds the projections of all three.

    Raises:
        TypeError: a size is not an integer.
        ValueError: sizes that are not positive, do not divide or do not fit together.
    """

    state: int | None
    stored: int | None = None
    projection: int | None = None
    hidden: int | None = None
    pattern: int | None = None
    output: int | None = None
    heads: int = 1
    state_static: bool = False
    stored_static: bool = False
    projection_static: bool = False
    connected: bool = False
    out_projection: bool = True
    joint: bool = field(init=False)

    def __post_init__(self) -> None:
        for name, argument in _ARGUMENTS.items():
            value = getattr(self, name)
            if value is not None or name == "heads":
                object.__setattr__(self, name, positive_size(argument, value))
        same = {self.state, self.stored or self.state, self.projection or self.state}
        joint = len(same) == 1 and self.pattern is None and not self.connected
        object.__setattr__(self, "joint", joint)
        if self.bare:
            return
        if self.state is None:
            raise ValueError(
                "input_size: expected the size of the state patterns, got None, which is for "
                "layers without a projection: all patterns static, disable_out_projection=True"
            )
        if self.hidden is None and self.state % self.heads:
            raise ValueError(
                f"num_heads: expected a divisor of input_size = {self.state}, got {self.heads}; "
                "change it, or give hidden_size, the size of each head"
            )
        self._default("stored", self.state)
        self._default("projection", self.state)
        self._default("hidden", self.state // self.heads)
        # What is neither projected nor joined by a projection is read out in the size it has.
        read = self.pattern or (self.projection if self.untouched else self.hidden)
        self._default("pattern", self.hidden)
        if self.out_projection:
            self._default("output", self.state)
        else:
            object.__setattr__(self, "output", self.heads * (read or 0))
        if self.connected and not self.stored_static and self.stored != self.projection:
            raise ValueError(
                "pattern_projection_as_connected: expected stored patterns and pattern projections "
                f"of one size, got {self.stored} and {self.projection}"
            )

        if self.connected and self.projection_static and self.pattern != self.hidden:
            raise ValueError(
                "pattern_size: expected hidden_size, as static pattern projections that are "
                f"connected have no projection but the stored patterns', got {self.pattern} and "
                f"{self.hidden}"
            )

    @property
    def bare(self) -> bool:
        """Whether nothing is projected: the sizes are those of the data."""
        static = self.state_static and self.stored_static and self.projection_static
        return static and not self.out_projection and not self.connected

    @property
    def untouched(self) -> bool:
        """Whether pattern projections are read out as they are, without any projection."""
        through = self.connected and not self.stored_static
        return self.projection_static and not through

    @property
    def inputs(self) -> tuple[int | None, int | None, int | None]:
        """The sizes of stored patterns, state patterns and projections; None where any will do."""
        if self.state_static and self.stored_static:
            stored = state = None
        else:
            stored = self.hidden if self.stored_static else self.stored
            state = self.hidden if self.state_static else self.state
        projection = self.projection
        if self.untouched:
            projection = self.pattern if self.out_projection else None
        return stored, state, projection

    @property
    def own_space(self) -> int:
        """H · d."""
        return self.heads * (self.hidden or 0)

    @property
    def own_pattern(self) -> int:
        """H · p."""
        return self.heads * (self.pattern or 0)

    def _default(self, name: str, value: int | None) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)


_ARGUMENTS = {
    "state": "input_size",
    "stored": "stored_pattern_size",
    "projection": "pattern_projection_size",
    "hidden": "hidden_size",
    "pattern": "pattern_size",
    "output": "output_size",
    "heads": "num_heads",
}


def positive_size(name: str, value: object) -> int:
    """A size as an int.

    Raises:
        TypeError: not an integer.
        ValueError: not positive.
    """
    if whole(value) is None:
        raise TypeError(f"{name}: expected a positive integer, got {value!r}")
    return integer(name, value)
