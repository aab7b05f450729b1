"""The engine: pieces of the merged model, block by block, each thread at another place of the file that is written.

    jobs (a piece, or some blocks of a large one) ─▶ threads: read rows ─▶ method ─▶ round once ─▶ write at its place
                                                     the last job of a file ─▶ synced, hashed, renamed, noted

Nothing is held but the blocks at work, so memory follows the number of threads and models and not their size. What is
drawn at random follows from the seed and names alone, so the result is the same whatever the threads do.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.allocator import keep_freed_memory
from tunesmith.core.problem import Problem
from tunesmith.merge.inputs import Model
from tunesmith.merge.layout import Piece
from tunesmith.merge.methods import Array, Block, MergeMethod, Whole
from tunesmith.merge.numbers import Bits, encode, finite
from tunesmith.merge.output import ShardFile, Staging
from tunesmith.merge.tokens import Vocabulary

SPAN = 64
"""Blocks of a large piece that one thread takes at once, where its method needs nothing of the whole tensor."""

MEGA = 1_000_000

HELD = 64 * MEGA
"""Bytes that go into one piece, up to which they are read once for all passes over it; each thread has as much."""

SPARE = 256 * MEGA
"""Bytes of freed memory that are kept for the next blocks."""

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """Hear nothing."""


@dataclass(frozen=True)
class Job:
    """Some blocks of a piece in a file."""

    shard: ShardFile
    piece: Piece
    first: int
    end: int


class Engine:
    """Merges the pieces of a layout into the files of a staging folder."""

    def __init__(
        self, models: Sequence[Model], vocabulary: Vocabulary | None, seed: int, listen: Progress = silent
    ) -> None:
        self.models = models
        self.vocabulary = vocabulary
        self.seed = seed
        self.listen = listen
        self._lock = threading.Lock()
        self._done = 0
        self._total = 0
        self._stopped = False

    def run(self, staging: Staging, threads: int) -> None:
        """Write every file that is not finished yet.

        Raises:
            Problem: a result that is not finite, an input that changes while it is read, a disk that is full.
        """
        shards = staging.unfinished()
        self._total = sum(piece.bytes for shard in shards for piece in shard.pieces)
        jobs = [job for shard in shards for job in self._jobs(shard)]
        left = Counter(job.shard.name for job in jobs)

        def work(job: Job) -> None:
            if self._stopped:
                return
            self._work(job)
            with self._lock:
                left[job.shard.name] -= 1
                last = left[job.shard.name] == 0
            if last:
                staging.finish(job.shard)

        keep_freed_memory(SPARE)
        with ThreadPoolExecutor(threads, "merge") as pool:
            waiting = [pool.submit(work, job) for job in jobs]
            try:
                for future in waiting:
                    future.result()
            finally:
                self._stopped = True
                pool.shutdown(cancel_futures=True)
        for model in self.models:
            model.weights.check_unchanged()

    def _jobs(self, shard: ShardFile) -> Iterator[Job]:
        """The jobs of a file, those of its largest pieces first, so that no thread is left with one at the end."""
        for piece in sorted(shard.pieces, key=lambda piece: -piece.bytes):
            count = piece.blocks
            span = count if measures(piece.method) else SPAN
            for first in range(0, max(count, 1), max(span, 1)):
                yield Job(shard, piece, first, min(first + span, count))

    def _work(self, job: Job) -> None:
        piece = job.piece
        with self._held(piece):
            known = self._known(piece)
            for number in range(job.first, job.end):
                if self._stopped:
                    return
                bits = self._bits(piece, number, known)
                job.shard.write(piece, piece.span(number)[0], bits)
                self._tell(bits.nbytes)

    @contextmanager
    def _held(self, piece: Piece) -> Generator[None]:
        """Keep what goes into a piece in memory where it is small, and its method goes over it more than once."""
        parts = [(self.models[part.model], part.name) for part in piece.parts]
        held = parts if measures(piece.method) and not piece.vocabulary else []
        if sum(tensor.bytes for model, name in held if (tensor := model.tensor(name))) > HELD:
            held = []
        for model, name in held:
            model.hold(name)
        try:
            yield
        finally:
            for model, name in held:
                model.release(name)

    def _known(self, piece: Piece) -> Any:
        """What the method must know of the whole tensor; faults of the tensor are told with its name."""
        if piece.method is None or not measures(piece.method):
            return None
        try:
            return piece.method.measure(self._whole(piece))
        except Problem as fault:
            raise Problem(fault.where or piece.name, fault.what, fault.hint) from fault

    def _tell(self, written: int) -> None:
        with self._lock:
            before, self._done = self._done, self._done + written
            if before // MEGA != self._done // MEGA or self._done == self._total:
                self.listen("MB merged", self._done // MEGA, self._total // MEGA)

    def _bits(self, piece: Piece, number: int, known: Any) -> Bits:
        if piece.method is None:
            return self._copied(piece, number)
        block = self._block(piece, number)
        with np.errstate(all="ignore"):  # what is not finite is found below, and told with its tensor
            merged = piece.method.merge(block, known)
        bits = encode(np.ascontiguousarray(merged), piece.stored)
        if not finite(bits, piece.stored):
            raise self._not_finite(piece, number)
        return bits

    def _copied(self, piece: Piece, number: int) -> Bits:
        """Bits of a tensor that holds no floating-point numbers; all models must have the same.

        Raises:
            Problem: they differ.
        """
        first, end = piece.span(number)
        found = [self.models[part.model].weights.tensors[part.name].bits(first, end) for part in piece.parts]
        if any(not np.array_equal(found[0], other) for other in found[1:]):
            what = f"holds {piece.stored} numbers that differ between the models, and such cannot be merged"
            raise Problem(piece.name, what, "Take the tensor from one model")
        return found[0]

    def _whole(self, piece: Piece) -> Whole:
        pick = None if piece.vocabulary else partial(self._block, piece)
        return Whole(piece.shape, piece.blocks, partial(self._block, piece), pick)

    def _block(self, piece: Piece, number: int, step: int = 1) -> Block:
        """A block, or every step-th element of it, flat."""
        read = self._aligned if piece.vocabulary else self._read if step == 1 else partial(self._sample, step=step)
        found = [read(piece, place, number) for place in range(len(piece.parts))]
        base = None if piece.base is None else found.pop(piece.base)
        return Block(base, tuple(found), number, lambda model: generator(self.seed, piece.name, model, number))

    def _read(self, piece: Piece, place: int, number: int) -> Array:
        part = piece.parts[place]
        return self.models[part.model].read(part.name, *piece.span(number), piece.kind)

    def _sample(self, piece: Piece, place: int, number: int, step: int) -> Array:
        part = piece.parts[place]
        return self.models[part.model].sample(part.name, *piece.span(number), step, piece.kind)

    def _aligned(self, piece: Piece, place: int, number: int) -> Array:
        """Rows of an embedding by the tokens of the merged vocabulary."""
        assert self.vocabulary is not None
        names = {part.model: part.name for part in piece.parts}

        def pick(model: int, ids: NDArray[np.intp]) -> Array:
            return self.models[model].gather(names.get(model, piece.name), ids, piece.kind)

        first, end = piece.span(number)
        return self.vocabulary.rows(piece.parts[place].model, first, end, pick)

    def _not_finite(self, piece: Piece, number: int) -> Problem:
        block = self._block(piece, number)
        others = [model for place, model in enumerate(piece.parts) if place != piece.base]
        inputs = [(piece.parts[piece.base], block.base)] if piece.base is not None else []
        for part, values in [*inputs, *zip(others, block.tensors, strict=True)]:
            if values is not None and not np.isfinite(values).all():
                name = str(self.models[part.model])
                return Problem(name, f"its tensor {part.name} is not finite", "The files are damaged; fetch them again")
        what = f"comes out infinite or undefined by {piece.method.name() if piece.method else 'copying'}"
        return Problem(piece.name, what, "Check the recipe's weights, or set out_dtype to bfloat16 or float32")


def generator(seed: int, tensor: str, model: int, block: int) -> np.random.Generator:
    """The random numbers for one model's rows of one block."""
    digest = hashlib.sha256(f"{seed}/{model}/{block}/{tensor}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def measures(method: MergeMethod | None) -> bool:
    """Whether a method goes over the whole tensor before it merges its blocks."""
    return method is not None and type(method).measure is not MergeMethod.measure
