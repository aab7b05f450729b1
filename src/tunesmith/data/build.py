"""Building token stores: every core tokenises, rows stay in order, and what was built once is found again.

    sources ─▶ records ─▶ chunks ─▶ workers: encode ─▶ blocks ─▶ writer ─▶ rename into the cache
     (main process)       (bounded queue, in order)     (main process)

Memory holds a few chunks, whatever the size of the data. Two builders of the same store do not disturb each other:
each writes into a folder of its own, and the first to finish is used by both.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from types import ModuleType

from tunesmith.core.caches import cache_home
from tunesmith.core.problem import Problem
from tunesmith.core.records import Place, Record
from tunesmith.core.rows import TokenRow
from tunesmith.core.rundir import sync_folder
from tunesmith.data.check import account, begin
from tunesmith.data.codec_parts import CodecParts
from tunesmith.data.convert import conversions, told
from tunesmith.data.encode import Rules, encode, excerpt_of, write
from tunesmith.data.formats import RowFault
from tunesmith.data.limits import many
from tunesmith.data.oddities import Seen
from tunesmith.data.report import DataReport, Rejected
from tunesmith.data.sources import Source, all_rejected
from tunesmith.data.store import FORMAT, Block, StoreWriter, TokenStore, block_of, content_key, open_store
from tunesmith.data.tokenizer import Codec

CHUNK = 128
"""Records that travel to a worker together."""
ALONE = 3.0
"""For so many seconds of CPU time this process works alone; with less to do, workers cost more than they save."""
REPORT, REJECTS = "report.json", "rejects.jsonl"

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A source with the number of the run's data entry that it belongs to."""

    source: Source
    entry: int


@dataclass(frozen=True, slots=True)
class _Task:
    """What a row has become on its way to a worker, with the numbers of its source in the report and of its entry."""

    records: tuple[Record, ...]
    source: int
    entry: int


@dataclass(slots=True)
class _Result:
    """What became of a chunk."""

    block: Block
    taken: int = 0
    lost: list[tuple[int, Rejected]] = field(default_factory=list[tuple[int, Rejected]])
    counts: Counter[tuple[int, str]] = field(default_factory=Counter[tuple[int, str]])


def cache_folder() -> Path:
    """Where token stores are kept."""
    return cache_home() / "tokens"


def store_fingerprint(parts: Sequence[Part], codec: Codec, rules: Rules) -> str:
    """A hash of everything that decides what is in a store."""
    sources = [[part.entry, part.source.fingerprint(), _conversion(part.source)] for part in parts]
    value = [FORMAT, sources, codec.fingerprint(), rules.plain()]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def build_store(
    parts: Sequence[Part],
    codec: Codec,
    rules: Rules,
    cache: Path,
    progress: Progress = lambda done: None,
    processes: int | None = None,
) -> tuple[TokenStore, DataReport]:
    """The token store of these sources and its report, from the cache or built now.

    cache: the folder that holds stores; progress: told how many records are done; processes: workers, by default one
    a core.

    Raises:
        Problem: the data cannot be used, a row is refused, or the disk is full.
    """
    fingerprint = store_fingerprint(parts, codec, rules)
    final = cache / fingerprint[:32]
    found = open_store(final, fingerprint)
    if found is None:
        _build(parts, codec, rules, final, fingerprint, progress, processes or _cores())
        found = open_store(final, fingerprint)
    if found is None:
        raise Problem(str(final), "was written and cannot be read back", "Check the disk, or set TUNESMITH_CACHE")
    return found, DataReport.load(final / REPORT)


def _build(
    parts: Sequence[Part], codec: Codec, rules: Rules, final: Path, fingerprint: str, progress: Progress, processes: int
) -> None:
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise Problem(str(final.parent), f"cannot be written ({error.strerror})", "Set TUNESMITH_CACHE") from error
    try:
        _write(parts, codec, rules, staging, final, fingerprint, progress, processes)
        _publish(staging, final, fingerprint)
    except OSError as error:
        free = shutil.disk_usage(final.parent).free
        what = f"cannot be written ({error.strerror}; {free:,} bytes are free)"
        raise Problem(str(final.parent), what, "Make room, or set TUNESMITH_CACHE to another disk") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(
    parts: Sequence[Part],
    codec: Codec,
    rules: Rules,
    staging: Path,
    final: Path,
    fingerprint: str,
    progress: Progress,
    processes: int,
) -> None:
    report = DataReport(staging / REJECTS)
    (staging / REJECTS).touch()
    writer = StoreWriter(staging)
    done = 0
    try:
        ledger = _Ledger(report)
        with closing(_encoded(ledger.tasks(parts, rules), codec, rules, processes)) as results:
            for result in results:
                writer.add(result.block)
                ledger.settle(result)
                done += result.taken
                progress(done)
        ledger.refuse_empty()
        report.close()
        report.rejects = final / REJECTS
        report.save(staging / REPORT)
        writer.finish(fingerprint, (REPORT, REJECTS))
    finally:
        report.close()
        writer.close()


def _publish(staging: Path, final: Path, fingerprint: str) -> None:
    """Rename into place; a store that another builder put there first is used, a damaged one makes room."""
    if final.exists() and open_store(final, fingerprint) is None:
        aside = staging.with_name(staging.name + ".damaged")
        final.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        staging.rename(final)
    except OSError:
        if open_store(final, fingerprint) is None:
            raise
    sync_folder(final.parent)


class _Ledger:
    """Keeps the report true while records go to workers and some of them come back as rejected."""

    def __init__(self, report: DataReport) -> None:
        self._report = report
        self._parts: dict[int, Part] = {}
        self._first: dict[int, Rejected] = {}

    def tasks(self, parts: Sequence[Part], rules: Rules) -> Iterator[_Task]:
        """Every usable record of every source, as the kind that is wanted."""
        seen = Seen()
        for part in parts:
            number = begin(part.source, self._report)
            self._parts[number] = part
            for record in account(part.source, number, self._report, seen):
                if what := told(record, rules.kind):
                    part.source.notes.setdefault(what)
                try:
                    records = conversions(record, rules.kind, part.source.spec)
                except RowFault as fault:
                    self._lose(number, Rejected(record.place, fault.reason, str(fault), excerpt_of(record)))
                else:
                    yield _Task(records, number, part.entry)

    def settle(self, result: _Result) -> None:
        """Book what became of a chunk."""
        for number, row in result.lost:
            self._lose(number, row)
        for (number, name), times in result.counts.items():
            self._report.add(number, name, times)

    def _lose(self, number: int, row: Rejected) -> None:
        """Book a row as rejected that was taken for one that can be used."""
        own = self._report.sources[number]
        own.used -= 1
        own.rows_in -= 1
        self._report.reject(number, row)
        self._first.setdefault(number, row)
        if row.reason != "too long" and self._parts[number].source.spec.on_bad_row == "stop":
            hint = "Mend the row, or set `on_bad_row: quarantine` to go on without such rows"
            raise Problem(str(row.place), f"{row.reason}: {row.message}", hint)

    def refuse_empty(self) -> None:
        """Raise if a source has lost all its rows."""
        for number, part in self._parts.items():
            own = self._report.sources[number]
            if not own.used and number in self._first:
                raise all_rejected(part.source.spec.path, own.rejected, self._first[number])


def _encoded(tasks: Iterator[_Task], codec: Codec, rules: Rules, processes: int) -> Generator[_Result, None, None]:
    """The results of all tasks, chunk by chunk, in order."""
    chunks = _chunks(tasks)
    begun = time.process_time()
    for chunk in chunks:
        yield _encode_chunk(chunk, codec, rules)
        if processes > 1 and time.process_time() - begun > ALONE:
            break
    first = next(chunks, None)
    if first is not None:
        yield from _in_workers(chain([first], chunks), codec, rules, processes)


def _in_workers(
    chunks: Iterable[list[_Task]], codec: Codec, rules: Rules, processes: int
) -> Generator[_Result, None, None]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(codec.parts, rules))
    pending: deque[Future[_Result]] = deque()
    try:
        for chunk in chunks:
            with _light_start():
                pending.append(pool.submit(_work, chunk))
            if len(pending) > 3 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise Problem(
            "tokenising", "a worker process was killed, most likely for want of memory", "Free memory and try again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _light_start() -> Generator[None, None, None]:
    """Start workers without the caller's main module.

    Python would run a script's top level again in each worker: a second training run where the script has no
    `__name__` guard, and the import of torch where it has one.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@dataclass(slots=True)
class _Worker:
    codec: Codec
    rules: Rules


_worker: list[_Worker] = []


def _start_worker(parts: CodecParts, rules: Rules) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker.append(_Worker(Codec(parts), rules))


def _work(chunk: list[_Task]) -> _Result:
    return _encode_chunk(chunk, _worker[0].codec, _worker[0].rules)


def _encode_chunk(chunk: list[_Task], codec: Codec, rules: Rules) -> _Result:
    with many():
        return _encode_tasks(chunk, codec, rules)


def _encode_tasks(chunk: list[_Task], codec: Codec, rules: Rules) -> _Result:
    kept: list[tuple[_Task, list[TokenRow]]] = []
    lost: list[tuple[int, Rejected]] = []
    counts: Counter[tuple[int, str]] = Counter()
    written = [[write(record, codec, rules) for record in task.records] for task in chunk]
    for task, texts in zip(chunk, written, strict=True):
        found: list[TokenRow] = []
        for record, text in zip(task.records, texts, strict=True):
            made = encode(record, codec, rules, lambda name, task=task: counts.update([(task.source, name)]), text)
            if isinstance(made, Rejected):
                lost.append((task.source, made))
                break
            found += made
        else:
            kept.append((task, found))
    return _Result(_block(kept), len(chunk), lost, counts)


def _block(kept: list[tuple[_Task, list[TokenRow]]]) -> Block:
    keys = [content_key(rows) for _, rows in kept]
    rows: list[tuple[TokenRow, Place, int, int]] = []
    for (task, found), key in zip(kept, keys, strict=True):
        rows += [(row, task.records[0].place, task.entry, key) for row in found]
    return block_of(rows)


def _chunks(tasks: Iterator[_Task]) -> Iterator[list[_Task]]:
    while chunk := list(islice(tasks, CHUNK)):
        yield chunk


def _conversion(source: Source) -> list[str | None]:
    """What of a source's options comes after reading."""
    return [source.spec.path, source.spec.prompt, source.spec.system, source.spec.on_bad_row]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
