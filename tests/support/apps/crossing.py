"""Steps that cancel runs in the transaction of their hand-over: each other's runs, and their own."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from underway import Context, Done, InsideStep, RetryPolicy, To, Underway

app = Underway()

QUICK = RetryPolicy(max_attempts=3, initial_interval=timedelta(milliseconds=20))


@dataclass
class Rival:
    """The names of both runs, and a folder in which they synchronize."""

    name: str
    other: str
    folder: str


def cancel_the_other(cx: Context, rival: Rival) -> Done[str]:
    """Cancel the other run. Both steps start before either cancels, and both cancel before either returns."""
    folder = Path(rival.folder)
    meet(rival, "runs")  # a rival that was cancelled before it started would never arrive
    app.cancel((folder / rival.other).read_text(), conn=cx.tx)
    meet(rival, "has cancelled")
    return To.done(rival.name)


def meet(rival: Rival, where: str) -> None:
    """Wait until the other step has reached the same point."""
    folder = Path(rival.folder)
    (folder / f"{rival.name} {where}").touch()
    while not (folder / f"{rival.other} {where}").exists():
        time.sleep(0.005)


def own_by_handle(cx: Context) -> None:
    try:
        app.get_run(cx.run_id).cancel(conn=cx.tx)
    except InsideStep as error:
        raise ValueError(f"refused: {error}") from error


def own_by_id(cx: Context) -> None:
    app.cancel(cx.run_id, conn=cx.tx)


def own_with_its_job(cx: Context) -> None:
    ending.cancel_all(conn=cx.tx)


def own_by_key(cx: Context) -> None:
    assert ending.cancel(unique_key="own_by_key", conn=cx.tx) == 1


def own_in_sql(cx: Context) -> None:
    cx.tx.execute("select underway.cancel(%s)", [cx.run_id])


def own_in_a_savepoint(cx: Context) -> None:
    with cx.tx.transaction():
        cx.tx.execute("select underway.cancel_all('ending')")


def own_row(cx: Context) -> None:
    cx.tx.execute("update underway.run set owner = null, state = 'pending' where id = %s", [cx.run_id])


def own_row_deleted(cx: Context) -> None:
    cx.tx.execute("delete from underway.run where id = %s", [cx.run_id])


def own_priority(cx: Context) -> None:
    cx.tx.execute("update underway.run set priority = 7 where id = %s", [cx.run_id])


def own_undone(cx: Context) -> None:
    cx.tx.execute("savepoint before")
    cx.tx.execute("select underway.cancel(%s)", [cx.run_id])
    cx.tx.execute("rollback to before")


def own_redrive(cx: Context) -> None:
    assert app.redrive(cx.run_id, conn=cx.tx) == 0


def own_without_conn(cx: Context) -> None:
    cx.tx.execute("insert into witness values (1)")
    app.cancel(cx.run_id)
    time.sleep(60)


def own_without_conn_and_return(cx: Context) -> None:
    cx.tx.execute("insert into witness values (1)")
    app.cancel(cx.run_id)


DEEDS: dict[str, Callable[[Context], None]] = {
    action.__name__: action
    for action in (
        own_by_handle, own_by_id, own_with_its_job, own_by_key, own_in_sql, own_in_a_savepoint, own_row,
        own_row_deleted, own_priority, own_undone, own_redrive, own_without_conn, own_without_conn_and_return,
    )
}  # fmt: skip


def end_oneself(cx: Context, action: str) -> Done[int]:
    cx.tx.execute("insert into witness values (1)")
    DEEDS[action](cx)
    return To.done(cx.attempt)


def hand_over(cx: Context, folder: str) -> Done[int]:
    cx.tx.execute("select 1")
    if cx.attempt == 1:
        Path(folder, "here").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.005)
    return To.done(cx.attempt)


racing = app.job("racing").step(cancel_the_other, retry=QUICK)
ending = app.job("ending").step(end_oneself, retry=QUICK)
waiting = app.job("waiting").step(hand_over, timeout=timedelta(seconds=1.5), retry=QUICK)
patient = app.job("patient").step(hand_over, retry=QUICK)
