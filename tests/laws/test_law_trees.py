"""Texts of their own in one row, marks, and values of any width: planted in a forest they are what each is alone."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.core.rows import Piece, TokenRow
from tunesmith.models.attention import NAME
from tunesmith.models.forest import by_row
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy

NOTHING = Piece(np.zeros(0, np.int32), np.zeros(0, np.float32))


def piece(length: int, seed: int, weight: float = 0.0) -> Piece:
    tokens = np.random.default_rng(seed).integers(3, tiny.vocabulary(), length).astype(np.int32)
    return Piece(tokens, np.full(length, weight, np.float32))


def apart() -> list[TokenRow]:
    """Rows of texts of their own, learned so that a loss can be had of them, beside a row with a trunk."""
    return [
        TokenRow(NOTHING, (piece(5, 1, 1.0), piece(9, 2, 1.0), piece(1, 3, 1.0)), (0.0, 1.0, 0.5), 4, note="first"),
        TokenRow(piece(7, 4), (piece(4, 5, 1.0),), (0.25,), 7),
        TokenRow(NOTHING, (piece(6, 6, 0.5), piece(3, 7, 1.0)), (0.0, 1.0), 9),
    ]


def alone(rows: list[TokenRow]) -> list[TokenRow]:
    """Every text as a row by itself."""
    return [TokenRow(text) for row in rows for text in (row.branches if not len(row.trunk) else [])]


def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    ours, theirs = (tiny.model("llama").double() for _ in range(2))
    ours.set_attn_implementation(NAME)
    theirs.set_attn_implementation("eager")
    return ours, theirs


def states(policy: Policy, rows: list[TokenRow]) -> tuple[Tensor, Tensor]:
    """What the model makes of the last token of each answer, and of each marked token."""
    batch = plant(rows)
    every = torch.arange(batch.answers)
    return policy.hidden(batch, batch.ends, every), policy.hidden(batch, batch.marks, batch.mark_rows)


def test_a_row_of_texts_is_planted_as_roots() -> None:
    batch = plant(apart())
    assert [segment.parent for segment in batch.segments] == [None, None, None, None, 3, None, None]
    assert [batch.positions[segment.start].item() for segment in batch.segments] == [0, 0, 0, 0, 7, 0, 0]
    assert batch.sizes == (3, 1, 2)
    assert sum(batch.sizes) == batch.answers == 6
    assert batch.rows == (4, 7, 9)
    assert batch.notes == ("first", "", "")
    assert batch.values.tolist() == [0.0, 1.0, 0.5, 0.25, 0.0, 1.0]
    assert batch.tree_lengths().tolist() == [5] * 5 + [9] * 9 + [1] + [11] * 11 + [6] * 6 + [3] * 3
    paths = [batch.path(leaf).tolist() for leaf in batch.leaves]
    texts = [text.tokens.tolist() for row in apart() for text in row.branches]
    texts[3] = [*apart()[1].trunk.tokens.tolist(), *texts[3]]
    assert paths == texts
    assert batch.tokens[batch.ends].tolist() == [text[-1] for text in texts]
    padded = batch.padded()
    assert [row[mask.bool()].tolist() for row, mask in zip(padded.tokens, padded.mask, strict=True)] == texts


def test_targets_of_texts_belong_to_them_and_never_to_their_first_token() -> None:
    batch = plant(apart())
    assert torch.bincount(batch.targets.row, minlength=6).tolist() == [4, 8, 0, 4, 5, 2]
    firsts = {segment.start for segment in batch.segments if segment.parent is None}
    assert firsts.isdisjoint((batch.targets.source + 1).tolist())


@pytest.mark.parametrize("forest", [True, False])
def test_texts_of_their_own_are_what_each_is_alone(forest: bool) -> None:
    """Losses by answer and states at the end, as a forest and as padded rows, against one text at a time."""
    ours, theirs = models()
    policy, single = Policy(ours if forest else theirs, forest=forest), Policy(theirs, forest=False)
    rows = [row for row in apart() if not len(row.trunk)]
    batch = plant(rows)
    found = by_row(batch, policy.logprobs(batch))
    kept = [plant([row]) for row in alone(rows)]
    expected = torch.stack([(single.logprobs(one) * one.targets.weight).sum() for one in kept])
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    ends, _ = states(policy, rows)
    assert torch.allclose(ends, torch.cat([states(single, [row])[0] for row in alone(rows)]), atol=1e-6)


@pytest.mark.parametrize("forest", [True, False])
def test_marks_are_read_where_they_stand(forest: bool) -> None:
    ours, theirs = models()
    policy, single = Policy(ours if forest else theirs, forest=forest), Policy(theirs, forest=False)
    rows = [
        TokenRow(piece(8, 1), marks=(0, 3, 7), values=(2.0, 0.0, 1.0)),
        TokenRow(piece(5, 2), marks=(1, 1), values=(4.0, 3.0)),
        TokenRow(piece(11, 3), marks=(10,), values=(5.0,)),
    ]
    batch = plant(rows)
    assert batch.values.tolist() == [2.0, 0.0, 1.0, 4.0, 3.0, 5.0]
    assert batch.mark_rows.tolist() == [0, 0, 0, 1, 1, 2]
    assert batch.tokens[batch.marks].tolist() == [row.trunk.tokens[mark] for row in rows for mark in row.marks]
    _, found = states(policy, rows)
    expected = torch.cat([states(single, [row])[1] for row in rows])
    assert torch.allclose(found, expected, atol=1e-6)


def test_values_of_a_width_stand_in_rows() -> None:
    rows = [TokenRow(piece(4, 1), values=(1.0, 0.0, 1.0)), TokenRow(piece(6, 2), values=(0.0, 0.0, 1.0))]
    assert plant(rows).values.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    assert plant([*rows, TokenRow(piece(2, 3))]).values.tolist()[2] == [0.0, 0.0, 0.0]
    assert plant([TokenRow(piece(2, 3), (piece(1, 4), piece(1, 5)))]).values.tolist() == [0.0, 0.0]


def test_rows_that_differ_in_kind_are_no_batch() -> None:
    with pytest.raises(ValueError, match="one batch"):
        plant([TokenRow(piece(4, 1), values=(1.0, 0.0)), TokenRow(piece(4, 1), values=(1.0,))])
    with pytest.raises(ValueError, match="one batch"):
        plant([TokenRow(piece(4, 1), values=(1.0,), marks=(2,)), TokenRow(piece(4, 1), values=(1.0,))])


def test_a_batch_moves_and_grows_with_all_it_has() -> None:
    batch = plant([TokenRow(piece(4, 1), values=(1.0,), marks=(2,), note="n")])
    moved = batch.to(torch.device("meta"))
    assert {moved.tokens.device.type, moved.marks.device.type, moved.mark_rows.device.type} == {"meta"}
    assert batch.with_extra("more", batch.values).notes == ("n",)
