"""A tier that is asked through the Batch API: collect what is answered, send what is not out.

Every step is written down before and after it is taken, so that a process that dies in between
neither pays for an answer twice nor loses one.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from db.batches import BY_HAND, Batches
from db.store import Batch, BatchState, TierState
from flows.progress import Display, say
from flows.run.judging import PAGE, TierWork, record
from tiers.opening import open_batch
from tiers.screenfile.tiers import OpenAIBatchTier
from tiers.tier import TOO_MANY_TOKENS, BatchTier, RemoteBatch
from tiers.types import Candidate, Judgement, Refused, TierError, TryLater

RECORD_ROWS = 1_000


class _File(NamedTuple):
    """Lines that are ready to be sent."""

    path: Path
    text_ids: list[int]
    tokens: int


class BatchRun:
    """One visit to the server: it never waits."""

    def __init__(self, work: TierWork, shown: Display) -> None:
        if not isinstance(work.job.config, OpenAIBatchTier):
            raise TypeError(f"not a batch tier: {work.job.config!r}")
        self._work = work
        self._config = work.job.config
        self._shown = shown
        self._batches = work.store.batches

    def run(self) -> None:
        """Collect what has ended, then send what has no answer and is not out.

        Raises:
            TierError: the key or the model is wrong, or a batch belongs to another account.
        """
        open_batches = self._open()
        if not open_batches and not self._work.waiting():
            self._set(TierState.DONE, None)
            return
        server = open_batch(self._work.job)
        self._set(TierState.RUNNING, None)
        try:
            for batch in open_batches:
                self._visit(server, batch)
            with suppress(TryLater):  # deleted at another visit
                self._clear_up(server)
            self._send(server)
        except TryLater as trouble:
            say(f"{trouble}; try again later", self._shown)
        except TierError as error:
            self._set(TierState.STOPPED, str(error))
            raise
        finally:
            server.close()
            self._say_remarks(server)
        self._report()

    def _say_remarks(self, server: BatchTier) -> None:
        for remark in server.remarks:
            say(f"{self._work.name}: {remark}", self._shown)

    def _open(self) -> list[Batch]:
        return self._batches.all(self._work.run.id, self._work.position, open_only=True)

    def _set(self, state: TierState, reason: str | None) -> None:
        run = self._work.run
        self._work.store.tiers.set_state(
            run.id, self._work.position, state, reason=reason, attempt=run.attempt
        )

    def _report(self) -> None:
        """Say what is out, and how the tier stands."""
        still_open = self._open()
        out = [batch for batch in still_open if batch.state is not BatchState.PREPARED]
        admission = self._work.admission
        if out:
            lines = sum(batch.lines for batch in out)
            counted = "1 batch" if len(out) == 1 else f"{len(out)} batches"
            say(
                f"{self._work.name}: {lines:,} candidates are out in {counted}; collect the "
                "answers with 'tamis batch poll' or the same command again",
                self._shown,
            )
        elif still_open:
            say(
                f"{self._work.name}: no batch has arrived; the same command tries again",
                self._shown,
            )
        elif admission is not None and admission.closed:
            say(f"{self._work.name} stopped: {admission.closed}", self._shown)
            self._set(TierState.STOPPED, admission.closed)
        else:
            self._set(TierState.DONE, None)

    def _visit(self, server: BatchTier, batch: Batch) -> None:
        """Take one batch as far as it goes."""
        if batch.key_fingerprint != server.fingerprint or batch.server != server.url:
            raise TierError(
                f"tier '{self._work.name}': batch {batch.id} was sent to {batch.server} with "
                f"another key; set {self._config.key_name} to that key again, or give the batch up "
                f"with 'tamis batch cancel {batch.id} --forget'"
            )
        if batch.state is BatchState.PREPARED:
            found = self._take_up(server, batch)
            if found is None:
                return
            batch = found
        if batch.state is BatchState.SUBMITTED and batch.remote_id is not None:
            remote = server.look(batch.remote_id)
            batch = noted(self._batches, batch, remote)
        if batch.state is BatchState.ENDED:
            self._collect(server, batch)

    def _take_up(self, server: BatchTier, batch: Batch) -> Batch | None:
        """Find out whether a batch arrived that was being sent when its process died."""
        remote = server.find(batch.mark)
        if remote is None and batch.input_file is not None:
            with suppress(Refused):
                remote = server.create(batch.input_file, batch.mark)
        if remote is None:
            self._drop(server, batch)
            return None
        return self._batches.change(
            batch.id,
            state=BatchState.SUBMITTED,
            remote_id=remote.id,
            remote_state=remote.state,
        )

    def _drop(self, server: BatchTier, batch: Batch) -> None:
        """Forget a batch that never came to be; its lines may go out in another."""
        self._release(self._batches.texts(batch.id))
        self._batches.drop(batch.id)
        if batch.input_file is not None:
            with suppress(TryLater):
                server.delete(batch.input_file)

    def _release(self, text_ids: Iterable[int]) -> None:
        if self._work.admission is not None:
            self._work.admission.release(text_ids)

    def _collect(self, server: BatchTier, batch: Batch) -> None:
        """Store the answers of a batch that ended, however it ended."""
        work = replace(self._work, price_id=batch.price_id)  # as it was when they were sent
        asked = set(self._batches.texts(batch.id))
        answered: set[int] = set()
        for file_id in (batch.output_file, batch.error_file):
            if file_id is None:
                continue
            fresh = (
                one for one in server.collect(file_id) if one.id in asked and one.id not in answered
            )
            while some := list(islice(fresh, RECORD_ROWS)):
                answered.update(one.id for one in some)
                record(work, list({one.id: one for one in some}.values()))
        self._release(asked - answered)
        self._batches.change(
            batch.id,
            state=BatchState.COLLECTED,
            answered=len(answered),
            unanswered=len(asked) - len(answered),
        )
        words = self._fate(asked - answered)
        why = f" ({batch.reason})" if batch.reason else ""
        say(
            f"{self._work.name}: batch {batch.id} {batch.remote_state}{why}: "
            f"{len(answered):,} answers{words}",
            self._shown,
        )

    def _fate(self, unanswered: set[int]) -> str:
        """What becomes of lines without an answer, in words."""
        rounds = self._batches.rounds(self._work.run.id, self._work.position)
        lost = sum(rounds.get(each, 0) >= self._config.rounds for each in unanswered)
        again = len(unanswered) - lost
        words = f"; {again:,} without an answer are sent again" if again else ""
        if lost:
            words += f"; {lost:,} without an answer have failed, after rounds: "
            words += f"{self._config.rounds}"
        return words

    def _clear_up(self, server: BatchTier) -> None:
        """Delete the files of collected batches, which fill the account's quota."""
        for batch in self._batches.all(self._work.run.id, self._work.position):
            files = [batch.input_file, batch.output_file, batch.error_file]
            if batch.state is BatchState.COLLECTED and any(files):
                for file_id in files:
                    if file_id is not None:
                        server.delete(file_id)
                self._batches.change(batch.id, input_file=None, output_file=None, error_file=None)

    def _send(self, server: BatchTier) -> None:
        """Send what has no answer and is not out, as much as may wait there at once."""
        room = self._room()
        source = self._unsent()
        first = next(source, None)
        if first is None or room <= 0:
            return
        admission = self._work.admission
        if admission is not None:
            if not admission.admit(first):
                return
            admission.release([first.id])
        remark = server.probe(first.text)
        if remark is not None:
            say(f"{self._work.name}: {remark}", self._shown)
        with tempfile.TemporaryDirectory() as folder:
            for file in self._files(server, Path(folder), first, source, room):
                self._submit(server, file)

    def _room(self) -> int:
        """Tokens that may be sent now; less than the setting where the server has said so."""
        limit = self._config.enqueued_tokens
        for batch in self._batches.all(self._work.run.id, self._work.position):
            if batch.state is BatchState.COLLECTED and TOO_MANY_TOKENS in (batch.reason or ""):
                limit = min(limit, max(batch.tokens // 2, 1))
        return limit - sum(batch.tokens for batch in self._open())

    def _unsent(self) -> Iterator[Candidate]:
        """Texts without an answer that are in no open batch; a text sent too often has failed."""
        work = self._work
        out = self._batches.out(work.run.id, work.position)
        rounds = self._batches.rounds(work.run.id, work.position)
        after = 0
        while page := work.store.judgements.unjudged(
            work.run.id, work.position, work.judge_id, after=after, limit=PAGE
        ):
            after = page[-1].id
            given_up = [
                Judgement(one.id, None, failed=True, error="no answer from any of its batches")
                for one in page
                if one.id not in out and rounds.get(one.id, 0) >= self._config.rounds
            ]
            if given_up:
                record(work, given_up)
            lost = {one.id for one in given_up}
            yield from (one for one in page if one.id not in out and one.id not in lost)

    def _files(
        self,
        server: BatchTier,
        folder: Path,
        first: Candidate,
        rest: Iterator[Candidate],
        room: int,
    ) -> Iterator[_File]:
        """Files within the limits of lines, bytes and waiting tokens."""
        path, size, tokens = folder / "0.jsonl", 0, 0
        text_ids: list[int] = []
        stream = path.open("wb")
        admission = self._work.admission
        for candidate in _chain(first, rest):
            line = server.line(candidate)
            if isinstance(line, Judgement):
                record(self._work, [line])
                continue
            full = len(text_ids) >= self._config.lines_per_file
            if text_ids and (full or size + len(line[0]) > self._config.bytes_per_file):
                stream.close()
                yield _File(path, text_ids, tokens)
                path = folder / f"{candidate.id}.jsonl"
                stream, text_ids, size, tokens = path.open("wb"), [], 0, 0
            if room < line[1] and (text_ids or room < self._config.enqueued_tokens):
                break
            if admission is not None and not admission.admit(candidate):
                break
            stream.write(line[0])
            text_ids.append(candidate.id)
            size, tokens, room = size + len(line[0]), tokens + line[1], room - line[1]
        stream.close()
        if text_ids:
            yield _File(path, text_ids, tokens)

    def _submit(self, server: BatchTier, file: _File) -> None:
        batch = self._batches.prepare(
            self._work.run.id,
            self._work.position,
            self._work.judge_id,
            file.text_ids,
            server=server.url,
            key_fingerprint=server.fingerprint,
            tokens=file.tokens,
            price_id=self._work.price_id,
        )
        try:
            batch = self._batches.change(batch.id, input_file=server.upload(file.path))
            remote = server.create(str(batch.input_file), batch.mark)
        except Refused:
            self._drop(server, batch)
            raise
        self._batches.change(
            batch.id,
            state=BatchState.SUBMITTED,
            remote_id=remote.id,
            remote_state=remote.state,
        )
        file.path.unlink()
        say(f"{self._work.name}: sent batch {batch.id}, {len(file.text_ids):,} lines", self._shown)


def noted(batches: Batches, batch: Batch, remote: RemoteBatch) -> Batch:
    """The batch with what the server says of it now; a person's word on its end stays."""
    stopped = (batch.reason or "").endswith(BY_HAND)
    return batches.change(
        batch.id,
        remote_state=remote.state,
        reason=batch.reason if stopped else remote.reason,
        output_file=remote.output_file,
        error_file=remote.error_file,
        **({"state": BatchState.ENDED} if remote.ended else {}),
    )


def _chain(first: Candidate, rest: Iterator[Candidate]) -> Iterator[Candidate]:
    yield first
    yield from rest
