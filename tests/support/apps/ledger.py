"""Transfers, which move money between accounts in two steps, exactly once; and parcels, which leave only a result."""

import os
import random
import time
from dataclasses import dataclass
from datetime import timedelta

from underway import Context, Done, RetryPolicy, To, Underway
from underway.definition.options import StepOptions

app = Underway()

ACCOUNTS = 20
TABLES = f"""
    create table account (id int primary key, balance int not null);
    insert into account select id, 0 from generate_series(0, {ACCOUNTS}) id; -- the last one holds money in transit
    create table entry (run uuid, step text, attempt int, at int);
"""


@dataclass
class Transfer:
    number: int
    amount: int
    debtor: int
    creditor: int


def move(cx: Context, transfer: Transfer, source: int, target: int) -> None:
    """Write an entry, and sometimes fail or die after that."""
    luck = random.Random(f"{transfer.number}/{cx.step}/{cx.attempt}").random() if cx.attempt < 4 else 1.0
    for account, amount in ((source, -transfer.amount), (target, transfer.amount)):
        cx.tx.execute("update account set balance = balance + %s where id = %s", [amount, account])
        time.sleep(luck / 100)
    cx.tx.execute("insert into entry values (%s, %s, %s, 1)", [cx.run_id, cx.step, cx.attempt])
    receipts.enqueue(transfer.number, conn=cx.tx)
    cx.enqueue(receipts, transfer.number)
    if luck < 0.05:
        raise ValueError("after everything was written")
    if luck < 0.06:
        os.abort()


def debit(cx: Context, transfer: Transfer) -> To[Transfer]:
    move(cx, transfer, transfer.debtor, ACCOUNTS)
    return To.next(transfer)


def credit(cx: Context, transfer: Transfer) -> Done[int]:
    move(cx, transfer, ACCOUNTS, transfer.creditor)
    return To.done(transfer.amount)


def receipt(cx: Context, number: int) -> Done:
    return To.done()


def pack(cx: Context, number: int) -> To[int]:
    time.sleep(0.005)
    return To.next(number + 1)


def deliver(cx: Context, number: int) -> Done[int]:
    return To.done(number * 2)


patient = RetryPolicy(
    max_attempts=1000, initial_interval=timedelta(milliseconds=20), max_interval=timedelta(seconds=0.2)
)
options: StepOptions = {"retry": patient, "max_crashes": 1000, "lease": timedelta(seconds=1)}

transfers = app.job("transfers").step(debit, **options).step(credit, **options)
receipts = app.job("receipts").step(receipt, **options)
parcels = app.job("parcels").step(pack, **options).step(deliver, **options)
