"""Attention: a query layer whose memory layer, softmax or sparse, has been eliminated.

Two layers, the query x and the memories (a :class:`~hamdeq.Separation`, most often softmax), with
the stored patterns K as the synapse between them. Eliminating the memories leaves, of a linear x,

    E(x) = ½‖x‖² − L(Kx),    x <- Kᵀ ∇L(Kx) = Kᵀ softmax(β K x),

for each state pattern by itself: attention (Ramsauer et al. 2021, equations 2 and 3), which
processors have a kernel for. :class:`Retrieval` computes it, for :mod:`hamdeq.nn` too, which comes
down to this step, and to reading other values in place of K at the end.
:func:`~hamdeq.eliminate` goes through it where it finds such a pair of layers in a graph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from hamdeq.elimination.cover import Cover
from hamdeq.lagrangians import Separation, Softmax

__all__ = [
    "Retrieval",
    "dot_product_attention",
    "folded",
    "shared",
    "times",
    "transformed",
    "unfolded",
]

# Twice the numbers that the widest registers of a CPU hold.
_LANES = 32

# A set of so many stored patterns is a bank. If more similarities than the limit would be made of
# one, state patterns take turns in blocks: 32 and 16 MiB of float32. A block is computed once more
# for the gradient, which takes time that smaller sets need not spend.
_BANK, _LIMIT, _BLOCK = 4096, 2**23, 2**22


class Retrieval:
    """The energy of state patterns among stored patterns, and the update that lets it fall.

    Memory does not grow with the product of state patterns and stored patterns: where the fused
    kernel cannot be used, and the mask is made, state patterns take turns in blocks, whose
    intermediate results are computed again for the gradient.

    Args:
        stored: K, ``(N, H, S, d)``; N may be 1 for patterns that all samples share.
        lagrangian: of the memory layer, used at the β given here.
        beta: inverse temperature β, a number or a tensor that broadcasts with ``(N, H, L, 1)``.
        mask: which stored patterns are left out, True, or what is added to β K x; broadcasts with
            ``(N, H, L, S)``. Where all are left out, x <- 0, with zero gradient, and E = ½‖x‖².

    Shape:
        State patterns are ``(N, H, L, d)``.
    """

    def __init__(
        self,
        stored: Tensor,
        lagrangian: Separation,
        beta: float | Tensor = 1.0,
        mask: Tensor | Cover | None = None,
    ) -> None:
        self.stored = stored
        self.lagrangian = lagrangian
        self.beta = beta
        self.mask: Cover | None = Cover(mask) if isinstance(mask, Tensor) else mask

    def update(self, x: Tensor) -> Tensor:
        """x <- Kᵀ ∇L(Kx): ``(N, H, L, d)``."""
        return self.read(x, self.stored)

    def read(self, x: Tensor, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Vᵀ ∇L(Kx), for values V ``(N, H, S, p)`` in place of K: ``(N, H, L, p)``."""

        rows = self._rows(x, values, dropout)
        if rows is None:
            return self._read(x, values, dropout)

        def read(memory: Retrieval, x: Tensor, values: Tensor) -> Tensor:
            return memory._read(x, values, dropout)

        return self._in_blocks(x, rows, read, values, random=dropout > 0)

    def weights(self, x: Tensor) -> Tensor:
        """∇L(Kx), how much of each stored pattern is read: ``(N, H, L, S)``."""
        return self._weights(x).to(x.dtype)

    def energy(self, x: Tensor) -> Tensor:
        """½‖x‖² − L(Kx), of at least float32: ``(N, H, L)``."""
        # Of half precision each term may be out of range.
        wide = _wide(x)
        return 0.5 * (wide * wide).sum(-1) - self.potential(x)

    def potential(self, x: Tensor) -> Tensor:
        """L(Kx), of at least float32: ``(N, H, L)``; 0 where all patterns are left out."""
        return self.by_rows(x, Retrieval._gain).squeeze(-1)

    def radius(self, x: Tensor) -> Tensor:
        """The largest norm of the patterns that take part: ``(N, H, L, 1)``, or with ones."""
        norms = _wide(self.stored).square().sum(-1)[..., None, :]
        keep = self._kernel(x)[0]
        if keep is not None:
            taken = keep > -torch.inf if keep.is_floating_point() else keep
            norms = torch.where(taken, norms, 0.0)
        return (norms.amax(-1, keepdim=True) if norms.shape[-1] else norms.sum(-1, True)).sqrt()

    @property
    def varies(self) -> bool:
        """Whether β or the mask is not the same for all state patterns."""
        beta, mask = self.beta, self.mask
        own = isinstance(beta, Tensor) and beta.dim() > 1 and beta.shape[-2] > 1
        return own or (mask is not None and mask.lead[2] > 1)

    def by_rows(self, x: Tensor, f: Callable[[Retrieval, Tensor], Tensor]) -> Tensor:
        """f(memory, x), whose results are ``(N, H, L, ·)``, for blocks of the state patterns."""
        return self._in_blocks(x, self._rows(x), lambda memory, x, _: f(memory, x), self.stored)

    def _gain(self, x: Tensor) -> Tensor:
        if self.stored.shape[-2] == 0:
            return _wide(x.new_zeros(*x.shape[:-1], 1))
        gain = self.lagrangian.potential(self._similarity(x)) / self.beta
        alive = self._kernel(x)[1]
        return gain if alive is None else torch.where(alive, gain, 0.0)

    def _read(self, x: Tensor, values: Tensor, dropout: float) -> Tensor:
        if isinstance(self.lagrangian, Softmax):
            found = self._attend(x, values, dropout)
            alive = self._kernel(x)[1]
            return found if alive is None else torch.where(alive, found, 0.0)
        return times(F.dropout(self._weights(x).to(values.dtype), dropout), values)

    def _weights(self, x: Tensor) -> Tensor:
        z = self._similarity(x)
        if self.stored.shape[-2] == 0:
            return z
        alive = self._kernel(x)[1]
        weights = self.lagrangian.distribution(z)
        return weights if alive is None else torch.where(alive, weights, 0.0)

    def _kernel(self, x: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The mask as the kernels want it, and the rows in which some pattern takes part."""
        return (None, None) if self.mask is None else self.mask.kernel(x.dtype)

    def _similarity(self, x: Tensor) -> Tensor:
        """βKx, and the mask, of at least float32: ``(N, H, L, S)``."""
        # Products of half precision leave its range, and what is infinite has no distribution.
        wide, stored = _wide(x), _wide(self.stored)
        q, device = (self.beta * wide).to(wide.dtype), x.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                z = times(q, stored.mT)
        else:
            z = times(q, stored.mT)
        keep = self._kernel(x)[0]
        if keep is None:
            return z
        return z + keep if keep.is_floating_point() else z.where(keep, -torch.inf)

    def _attend(self, x: Tensor, values: Tensor, dropout: float) -> Tensor:
        beta = self.beta
        if isinstance(beta, Tensor):
            x, beta = (beta * x).to(x.dtype), 1.0
        stored, keep = self.stored, self._kernel(x)[0]

        def attend(x: Tensor, stored: Tensor, values: Tensor, keep: Tensor | None) -> Tensor:
            found = dot_product_attention(x, stored, values, keep, dropout=dropout, scale=beta)
            # A traced graph is for any number of patterns.
            few = torch.compiler.is_compiling() or stored.shape[-2] < _LANES
            return _with_nan(found, x, stored, keep) if few and x.device.type == "cpu" else found

        # A traced graph is for any number of samples: to ask for it would tie it to this one.
        alike = keep is None or (not torch.compiler.is_compiling() and _for_all(keep))
        if alike and shared(stored, x) and shared(values, x):
            return unfolded(attend(folded(x), stored, values, keep), x.shape[0])
        stored, values = (t.expand(x.shape[0], -1, -1, -1) for t in (stored, values))
        return attend(x, stored, values, keep)

    def _rows(self, x: Tensor, values: Tensor | None = None, dropout: float = 0.0) -> int | None:
        """How many state patterns of all heads to take at once; None for all.

        Args:
            x: the state patterns.
            values: what is read, None where similarities themselves are needed.
            dropout: of the read-out.
        """
        # A traced graph is for any number of patterns.
        if torch.compiler.is_compiling() or transformed():
            return None
        (n, heads, states, d), size = x.shape, self.stored.shape[-2]
        if size < _BANK:
            return None
        mask = self.mask
        each = heads * size
        if values is not None and self._is_fused(x, values, dropout):
            # Nothing is made but the mask, and gradients of shared patterns for each sample.
            if mask is None or (lead := mask.lead)[0] == lead[2] == 1:
                return None
            made, each = lead.numel() * size, lead[1] * size
            if shared(self.stored, x) and shared(values, x):
                made = max(made, n * heads * size * (d + values.shape[-1]))
        else:
            made = n * states * each
        return max(1, _BLOCK // each) if made > _LIMIT else None

    def _is_fused(self, x: Tensor, values: Tensor, dropout: float) -> bool:
        """Whether attention has a kernel here that makes no matrix of similarities."""
        if not isinstance(self.lagrangian, Softmax):
            return False
        if self.mask is not None and self.mask.requires_grad and torch.is_grad_enabled():
            return False
        if x.device.type != "cpu":
            return True
        enabled = torch.backends.cuda.flash_sdp_enabled()  # for a CPU too, in spite of its name
        return enabled and not dropout and values.shape[-1] == x.shape[-1]

    def _in_blocks(
        self,
        x: Tensor,
        rows: int | None,
        f: Callable[[Retrieval, Tensor, Tensor], Tensor],
        values: Tensor,
        *,
        random: bool = False,
    ) -> Tensor:
        """f(memory, x, values) of blocks of so many state patterns, put together."""
        if rows is None:
            return f(self, x, values)
        n, _, states, _ = x.shape
        if rows >= n * states:
            return _folding(f, self, x, values)
        length = min(rows, states)
        samples = max(1, rows // states)
        across, along = math.ceil(n / samples), math.ceil(states / length)

        def grid(t: Tensor) -> list[tuple[Tensor, ...]]:
            strips = t.split(samples) if t.shape[0] > 1 else (t,) * across
            return [s.split(length, 2) if s.shape[2] > 1 else (s,) * along for s in strips]

        def strips(t: Tensor) -> tuple[Tensor, ...]:
            return t.split(samples) if t.shape[0] > 1 else (t,) * across

        again = torch.is_grad_enabled()
        beta = self.beta
        betas = (
            grid(beta.reshape(*(1,) * (4 - beta.dim()), *beta.shape))
            if isinstance(beta, Tensor)
            else [(beta,) * along] * across
        )
        masks = [] if self.mask is None else [grid(part) for part in self.mask.parts]
        stored, read, xs = strips(self.stored), strips(values), grid(x)
        found = []
        for i in range(across):
            line = []
            for j in range(along):
                mask = self.mask and Cover(*(m[i][j] for m in masks), extra=self.mask.extra)
                memory = Retrieval(stored[i], self.lagrangian, betas[i][j], mask)
                given = (memory, xs[i][j], read[i])
                line.append(
                    checkpoint(_folding, f, *given, use_reentrant=False, preserve_rng_state=random)
                    if again
                    else _folding(f, *given)
                )
            found.append(torch.cat(line, 2))
        return torch.cat(found)

    def anew(self) -> Retrieval:
        """The same memory, whose mask is made once more: it may be as large as a block."""
        return Retrieval(self.stored, self.lagrangian, self.beta, self.mask and self.mask.anew())

    def folded(self, x: Tensor) -> Retrieval:
        """The memory for the state patterns of all samples as those of one, :func:`folded`."""
        beta, (n, _, states, _) = self.beta, x.shape
        if isinstance(beta, Tensor) and beta.dim() > 2:
            beta = beta.reshape(*(1,) * (4 - beta.dim()), *beta.shape)
            if not _for_all(beta):
                beta = folded(beta.expand(n, -1, states, -1))
        mask = None if self.mask is None else self.mask.folded(n, states)
        return Retrieval(self.stored, self.lagrangian, beta, mask)


def dot_product_attention(
    x: Tensor,
    stored: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    dropout: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """softmax(scale · x Kᵀ + mask) V by PyTorch's kernels: ``(N, H, L, p)``."""

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(
            x, stored, values, attn_mask=mask, dropout_p=dropout, scale=scale
        )

    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype in (torch.float16, torch.bfloat16) and not _has_kernel(dtype):
            with sdpa_kernel(SDPBackend.MATH):
                return attend()
    return attend()


@functools.cache
def _has_kernel(dtype: torch.dtype) -> bool:
    """Try the CPU's fused kernel: it may ask for instructions that are ruled out.

    With ATEN_CPU_CAPABILITY below what the processor has, PyTorch 2.14 raises an error.
    """
    x = torch.zeros(1, 1, 64, 16, dtype=dtype)
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            F.scaled_dot_product_attention(x, x, x)
    except RuntimeError:
        return False
    return True


def _folding(
    f: Callable[[Retrieval, Tensor, Tensor], Tensor], memory: Retrieval, x: Tensor, values: Tensor
) -> Tensor:
    """f of a block, whose patterns are not copied for each sample where these share them."""
    if shared(memory.stored, x) and shared(values, x):
        return unfolded(f(memory.folded(x), folded(x), values), x.shape[0])
    return f(memory.anew(), x, values)


def times(x: Tensor, y: Tensor) -> Tensor:
    """x @ y, without a copy of y for each sample where these share it."""
    return unfolded(folded(x) @ y, x.shape[0]) if shared(y, x) else x @ y


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _for_all(x: Tensor) -> bool:
    """Whether a tensor ``(…, H, L, ·)`` is the same for all samples and state patterns."""
    return x.shape[:-3].numel() == 1 and x.shape[-2] == 1


def _with_nan(found: Tensor, x: Tensor, stored: Tensor, keep: Tensor | None) -> Tensor:
    """NaN where similarities are: of fewer patterns than it has lanes, the kernel makes zeros."""
    if keep is not None and keep.is_floating_point():
        found = found.masked_fill(keep.isnan().any(-1, keepdim=True), torch.nan)
    if 0 in x.shape or 0 in stored.shape:
        return found
    return found + _nothing(x) + _nothing(stored).sum(-2, keepdim=True)


def _nothing(x: Tensor) -> Tensor:
    """Zero for each row ``(…, 1)``, and NaN for those that hold a number that is not finite."""
    return 0.0 * torch.linalg.vector_norm(x.detach(), torch.inf, dim=-1, keepdim=True)


def shared(stored: Tensor, x: Tensor) -> bool:
    """Whether all of several samples have the same stored patterns."""
    return stored.shape[0] == 1 < x.shape[0]


def folded(x: Tensor) -> Tensor:
    """The state patterns of all samples as those of one: ``(N, H, L, d) -> (1, H, N · L, d)``."""
    return x.transpose(0, 1).flatten(1, 2)[None]


def unfolded(x: Tensor, samples: int) -> Tensor:
    """The inverse of :func:`folded`, for any last axes: ``(1, H, N · L, …) -> (N, H, L, …)``."""
    return x[0].unflatten(1, (samples, -1)).transpose(0, 1)


def transformed() -> bool:
    """True under a transform of torch.func."""
    stack = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore[reportAttributeAccessIssue]
    return stack is not None
