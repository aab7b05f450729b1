"""Stop texts and batches, by themselves."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.generate.batches import Job, left_padded, pack
from tunesmith.generate.stops import Holder, StopTexts, cut

texts = st.text("ab. ", max_size=30)


def test_cut_takes_the_first_stop() -> None:
    assert cut("one STOP two END", ("END", "STOP")) == ("one ", True)
    assert cut("one", ("END",)) == ("one", False)
    assert cut("one", ()) == ("one", False)


@given(texts, st.lists(st.text("ab.", min_size=1, max_size=3), max_size=3), st.data())
def test_a_held_stream_is_the_cut_text(text: str, stops: list[str], data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    holder = Holder(stops)
    shown = "".join([holder.push(piece) for piece in pieces]) + holder.flush()
    # pieces decide which of several stops is met first, as tokens do
    met = next(
        (cut("".join(pieces[: n + 1]), stops) for n in range(len(pieces)) if cut("".join(pieces[: n + 1]), stops)[1]),
        None,
    )
    assert shown == (met[0] if met else text)


def test_nothing_is_shown_that_may_begin_a_stop() -> None:
    holder = Holder(("</end>",))
    assert [holder.push(piece) for piece in ("a<", "/e", "x</", "end", "> more")] == ["a", "", "</ex", "", ""]
    assert holder.stopped


def test_only_the_newest_tokens_are_looked_at() -> None:
    stops = StopTexts(("cd",), lambda ids: "".join(map(chr, ids)), prompt_length=2)
    rows = torch.tensor([[99, 100, 97, 98], [97, 97, 99, 100]])
    assert stops(rows, None).tolist() == [False, True]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([5, 10])), max_size=20), st.integers(1, 200), st.booleans()
)
def test_batches_hold_every_job_once_within_the_budget(sizes: list[tuple[int, int]], budget: int, pad: bool) -> None:
    jobs = [Job(n, (1,) * length, room) for n, (length, room) in enumerate(sizes)]
    batches = pack(jobs, budget, pad=pad)
    assert sorted(job.index for batch in batches for job in batch) == list(range(len(jobs)))
    for batch in batches:
        assert len({job.room for job in batch}) == 1
        assert len(batch) == 1 or len(batch) * max(job.cost for job in batch) <= budget
        assert pad or len({len(job.tokens) for job in batch}) == 1


def test_padding_stands_on_the_left() -> None:
    tokens, mask = left_padded([Job(0, (5, 6), 1), Job(1, (7,), 1)], 9, torch.device("cpu"))
    assert tokens.tolist() == [[5, 6], [9, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]
