"""The store of one supervisor; its statements are in the modules beside this one."""

from collections.abc import Callable, Collection, Iterable, Sequence, Set
from typing import Any
from uuid import UUID

from simulation import claims, commits, leases
from simulation.database import Database
from simulation.ledger import Broken
from simulation.session import ReconnectingConnection
from underway.definition.manifest import Lane, Manifest, Placement, Policy
from underway.postgres.reconnecting import STATEMENT_SECONDS
from underway.postgres.supervisor_store import ANY_SIZE, Claimed, Lanes, Renewal
from underway.postgres.transitions import AdvanceRun, FinishRun


class FakeStore:
    """`holds` returns the tokens that its supervisor holds."""

    def __init__(
        self, database: Database, work: ReconnectingConnection, leases: ReconnectingConnection, owner: UUID
    ) -> None:
        self.holds: Callable[[], Collection[int]] = tuple
        self.known = True
        self.locked_keys: set[str] = set()
        self.on_locked_keys: Callable[[], None] = lambda: None
        self._database = database
        self._work = work
        self._leases = leases
        self._owner = owner

    async def claim(
        self,
        lanes: Lanes,
        tasks: int,
        *,
        candidates: int,
        suspects: int,
        size: int = ANY_SIZE,
        from_start: bool = True,
        seconds: float = STATEMENT_SECONDS,
    ) -> list[Claimed]:
        limits = tasks, candidates, suspects, size, from_start
        claimed = await self._leases.do(
            "claim",
            lambda: claims.claim(self._database, self._owner, lanes, *limits, self._leases.carry),
            seconds=seconds,
        )
        for run, lane, rank in claimed:
            if not run.crashes:
                lanes.advance_cursor(lane, rank, run.run)
        return [run for run, _, _ in claimed]

    @property
    def claim_sent_at(self) -> float:
        return self._leases.sent_at

    @property
    def claim_leased_from(self) -> float:
        return self._leases.leased_from

    @property
    def commit_sent_at(self) -> float:
        return self._work.sent_at

    @property
    def commit_leased_from(self) -> float:
        return self._work.leased_from

    async def finish(
        self, rows: Sequence[FinishRun], spawned: list[dict[str, Any]], *, seconds: float = STATEMENT_SECONDS
    ) -> set[int]:
        self._check_held(
            row for row in rows if row.state != "cancelled"
        )  # an unknown run that was cancelled is not held
        done, locked = await self._work.do(
            "finish",
            lambda: commits.finish(self._database, self._owner, rows, spawned),
            sent=_size(rows),
            seconds=seconds,
        )
        self._note_locked_keys(locked)
        return done

    async def continue_(
        self,
        rows: Sequence[AdvanceRun],
        spawned: list[dict[str, Any]],
        keep: Sequence[Policy | None] | None = None,
        *,
        seconds: float = STATEMENT_SECONDS,
    ) -> dict[int, int | None]:
        self._check_held(rows)
        done, locked = await self._work.do(
            "continue",
            lambda: commits.continue_(self._database, self._owner, rows, spawned, keep),
            sent=_size(rows),
            seconds=seconds,
        )
        self._note_locked_keys(locked)
        return done

    def _check_held(self, rows: Iterable[FinishRun | AdvanceRun]) -> None:
        if lost := [row.token for row in rows if row.token not in self.holds()]:
            raise Broken(f"something is to be written for {lost}, which are no longer held")

    async def drop(self, run: str, token: int) -> bool:
        return await self._work.do("drop", lambda: False)  # IDs are unique in the simulation

    async def owned(self, runs: Sequence[str], *, on_leases: bool = False) -> dict[tuple[str, int], bool]:
        return await self._session(on_leases).do("owned", lambda: commits.owned(self._database, self._owner, runs))

    async def recorded(
        self, attempts: Sequence[tuple[str, int]], *, on_leases: bool = False
    ) -> dict[tuple[str, int], str]:
        return await self._session(on_leases).do("recorded", lambda: commits.recorded(self._database, attempts))

    async def renew(self, renewals: Sequence[Renewal]) -> set[str]:
        return await self._leases.do("renew", lambda: leases.renew(self._database, self._owner, renewals))

    async def release_unknown(self, known: Collection[str]) -> None:
        claimed = await self._leases.do("claimed", lambda: leases.claimed(self._database, self._owner))
        unknown = [(run, token) for run, token in claimed if run not in known]
        if unknown:
            await self._leases.do(
                "release unknown", lambda: leases.release_unknown(self._database, self._owner, unknown)
            )

    async def cancel_requests(self) -> list[tuple[str, int, int, int]]:
        return await self._leases.do("cancel requests", lambda: leases.cancel_requests(self._database, self._owner))

    async def rehearse_renewal(self) -> float:
        return await self._work.do("rehearse renewal", self._database.loop.time)

    async def reap(
        self, limit: int, expired_by: float | None = None, *, passing_over: int = 0
    ) -> list[tuple[str, int, str | None]]:
        reaped, locked = await self._work.do("reap", lambda: leases.reap(self._database, expired_by))
        self._note_locked_keys(locked)
        return reaped

    async def promote(self, limit: int, *, from_start: bool = True, passing_over: int = 0) -> int:
        return await self._work.do("promote", lambda: claims.promote(self._database))

    async def join_key_queue(self, limit: int, *, from_start: bool = True, passing_over: int = 0) -> int:
        before, self.locked_keys = self.locked_keys, set()
        looked_at, locked = await self._work.do("line up", lambda: self._database.keys.join_key_queue(before))
        self._note_locked_keys(locked)
        return looked_at

    async def sweep_keys(self, after: tuple[str, str], limit: int) -> tuple[str, str]:
        self._note_locked_keys(await self._work.do("sweep", self._database.keys.sweep))
        return "", ""

    def _note_locked_keys(self, locked: Collection[str]) -> None:
        if locked:
            self.locked_keys.update(locked)
            self.on_locked_keys()

    async def seconds_until_due(self, *, from_start: bool = True) -> float | None:
        due = await self._work.do("due", lambda: claims.due_at(self._database))
        return None if due is None else due - self._database.loop.time()

    async def terminate(self, tokens: Iterable[int]) -> None:
        named = set(tokens)
        await self._leases.do("terminate", lambda: self._database.terminated.update(named))

    def _session(self, on_leases: bool) -> ReconnectingConnection:
        return self._leases if on_leases else self._work

    # Not simulated

    async def paused_queues(self) -> Set[str]:
        return frozenset()

    async def heartbeat(self) -> bool:
        return True

    async def stop_requested(self) -> bool:
        return False

    async def has_work(self, jobs: Iterable[str]) -> bool:
        return bool(self._database.live)

    async def expire(self, limit: int, *, from_start: bool = True, passing_over: int = 0) -> int:
        return 0

    async def stranded_lanes(self) -> list[Lane]:
        return []

    async def register(self, *, pid: int, app: str, lanes: Iterable[Lane] = (), trouble: str = "") -> None: ...
    async def register_app(self, manifest: Manifest) -> None: ...
    async def register_job(self, name: str, step: str, placement: Placement) -> None: ...
    async def register_queue(self, name: str, dead_letter: str | None) -> None: ...
    async def forget_supervisors(self) -> None: ...
    async def set_idle(self, idle: bool, queues: Iterable[str] | None = None) -> None: ...
    async def deregister(self) -> None: ...


def _size(rows: Sequence[FinishRun] | Sequence[AdvanceRun]) -> int:
    return sum(len(row.payload or b"") for row in rows)
