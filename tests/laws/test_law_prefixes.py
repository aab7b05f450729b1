"""What rows have in common at their start is computed once: the same rows, values, losses and gradients as apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_law_forest import assert_same, grown, precise, tolerance

from tunesmith.core.rows import Piece, TokenRow
from tunesmith.data.pack import pack
from tunesmith.data.prefixes import LEAST, context, pack_rows, shared
from tunesmith.models.attention import NAME
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives import next_token_loss


def piece(tokens: Sequence[int], context: int) -> Piece:
    """Tokens of which the first so many are context."""
    return Piece(np.array(tokens, np.int32), (np.arange(len(tokens)) >= context).astype(np.float32))


def run_of(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, tiny.vocabulary(), length).tolist()


def alike() -> list[TokenRow]:
    """Rows under a system prompt, some under a text below it, between rows of their own."""
    system, text, other = run_of(20, 1), run_of(LEAST + 3, 2), run_of(18, 3)

    def row(start: list[int], seed: int, *branches: int) -> TokenRow:
        answers = tuple(piece(run_of(length, seed + 50 + at), 0) for at, length in enumerate(branches))
        own = run_of(5, seed)
        if branches:
            return TokenRow(piece(start + own, len(start) + 5), answers, index=seed)
        return TokenRow(piece(start + own + run_of(6, seed + 90), len(start) + 5), index=seed)

    return [
        row(system + text, 10),
        row([], 11),
        row(system, 12, 4, 7),
        row(system + text, 13, 3),
        row(other, 14),
        TokenRow(piece(system + text, 39), (piece(run_of(4, 15), 0), piece(run_of(3, 16), 0)), index=15),
        row(other[:17], 16, 5),
        TokenRow(piece(system + run_of(4, 17), 20), index=17),
        row(run_of(3, 18), 18),
    ]


def paths(batch: Batch) -> list[list[int]]:
    return [batch.path(leaf).tolist() for leaf in batch.leaves]


def learned(batch: Batch) -> list[tuple[int, int, int, float]]:
    """Of each target the answer, the position that it is read at, the token and the weight."""
    found = batch.targets
    return sorted(
        zip(
            found.row.tolist(),
            batch.positions[found.source].tolist(),
            found.token.tolist(),
            found.weight.tolist(),
            strict=True,
        )
    )


def assert_planted_alike(rows: Sequence[TokenRow]) -> Batch:
    """Shared or not, answers have the same tokens and targets; returns the shared batch."""
    ours, theirs = plant(rows, share=True), plant(rows)
    assert paths(ours) == paths(theirs)
    assert learned(ours) == learned(theirs)
    assert (ours.rows, ours.sizes) == (theirs.rows, theirs.sizes)
    assert ours.row_tokens == theirs.row_tokens == len(theirs) == sum(map(len, rows))
    assert ours.tokens[ours.targets.source].tolist() == theirs.tokens[theirs.targets.source].tolist()
    depths = [sum(part.stop - part.start for part in above) for above in ours.layout.ancestors]
    for segment, depth in zip(ours.segments, depths, strict=True):
        own = ours.positions[segment.start : segment.stop].tolist()
        assert own == list(range(depth, depth + segment.stop - segment.start))
    return ours


def test_common_starts_stand_once() -> None:
    rows = alike()
    batch = assert_planted_alike(rows)
    found = sorted((part.start, part.stop, part.rows) for part in shared(rows))
    assert found == [(0, 17, (4, 6)), (0, 20, (0, 2, 3, 5, 7)), (20, 39, (0, 3, 5))]
    assert len(batch) == sum(map(len, rows)) - 17 - 4 * 20 - 2 * 19
    assert batch.leaves[5] != batch.leaves[0]
    assert set(batch.tree_lengths().tolist()) == {len(rows[1]), len(rows[8]), *(n for n in trees(batch))}


def trees(batch: Batch) -> list[int]:
    """The tokens of the trees that several rows stand in."""
    roots = [(*above, own)[0] for above, own in zip(batch.layout.ancestors, batch.segments, strict=True)]
    sizes = dict.fromkeys(roots, 0)
    for root, own in zip(roots, batch.segments, strict=True):
        sizes[root] += own.stop - own.start
    return list(sizes.values())


def test_rows_of_equal_context_end_in_it() -> None:
    rows = [TokenRow(piece(run_of(30, 1), 30), index=number) for number in range(2)]
    batch = assert_planted_alike(rows)
    assert len(batch) == 30
    assert batch.leaves == (0, 0)


def test_what_is_learned_or_marked_is_not_shared() -> None:
    both = run_of(40, 1)
    learns = TokenRow(piece(both, 10))
    marked = TokenRow(piece(both, 40), marks=(3,))
    assert len(context(learns)) == 10
    assert len(context(marked)) == 0
    assert shared([learns, learns, marked, marked]) == []


few = st.lists(st.integers(3, 4), max_size=60)


@given(
    st.lists(st.tuples(few, few, st.lists(few.filter(len), max_size=3)), min_size=1, max_size=8), st.integers(1, 150)
)
def test_any_rows_are_planted_and_packed_alike(
    shapes: list[tuple[list[int], list[int], list[list[int]]]], budget: int
) -> None:
    """Of two tokens alone, so that much is in common."""
    rows = [
        TokenRow(piece([3, *start, *end], 1 + len(start)), tuple(piece(branch, 0) for branch in branches), index=number)
        for number, (start, end, branches) in enumerate(shapes)
    ]
    batch = assert_planted_alike(rows)
    assert len(batch) == sum(map(len, rows)) - sum((len(p.rows) - 1) * (p.stop - p.start) for p in shared(rows))
    packs = pack_rows(rows, budget, share=True)
    assert sorted(number for part in packs.rows for number in part) == list(range(len(rows)))
    for part, tokens in zip(packs.rows, packs.tokens, strict=True):
        assert len(part) == 1 or tokens <= budget
        assert len(plant([rows[number] for number in part], share=True)) <= tokens
    apart = pack_rows(rows, budget, share=False, extra=2)
    assert apart.rows == pack([len(row) + 2 for row in rows], budget)


def test_a_budget_holds_more_rows_where_they_share() -> None:
    system = run_of(100, 1)
    rows = [TokenRow(piece(system + run_of(10, 2 + number), 100), index=number) for number in range(12)]
    assert len(pack_rows(rows, 240, share=False).rows) == 6
    each = 10 + 13  # its own tokens, and an eighth of those above it, whose keys may be laid out for it
    assert pack_rows(rows, 240, share=True) == ([[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]], [100 + 6 * each] * 2)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_losses_and_gradients_are_those_of_rows_apart(family: str) -> None:
    ours, theirs = precise(family), precise(family)
    for model in (ours, theirs):
        model.set_attn_implementation(NAME)
    rows = alike()
    together = grown(ours, next_token_loss(Policy(ours, forest=True), plant(rows, share=True)))
    apart = grown(theirs, next_token_loss(Policy(theirs, forest=True), plant(rows)))
    assert_same(together, apart, tolerance(ours))


def test_padded_rows_of_a_shared_batch_are_whole() -> None:
    model = tiny.model("llama").double()
    model.set_attn_implementation(NAME)
    shares, apart = plant(alike(), share=True), plant(alike())
    with torch.no_grad():
        found = Policy(model, forest=False).states(shares)
        wanted = Policy(model, forest=True).states(apart)
    order = [
        sorted(range(len(b.targets)), key=lambda at, b=b: (b.targets.row[at], b.positions[b.targets.source[at]]))
        for b in (shares, apart)
    ]
    assert torch.allclose(found[order[0]], wanted[order[1]], atol=1e-6)
