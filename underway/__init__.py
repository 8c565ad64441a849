"""Durable step functions on Postgres, executed by a supervisor of worker processes."""

from underway.app import Underway
from underway.client import Attempt, Run, Status
from underway.context import Context
from underway.dead_letters import DeadLetter
from underway.errors import (
    AppNotFound,
    EmbeddedPostgresError,
    Fail,
    ImportSideEffect,
    InsideStep,
    Interrupt,
    InvalidOption,
    JobDefinitionError,
    NoDatabase,
    PayloadError,
    Retry,
    RunCancelled,
    RunFailed,
    RunNotFound,
    SchemaError,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    SupervisorFailed,
    UnderwayError,
    UnknownJob,
)
from underway.handover import Done, To
from underway.job import Job
from underway.quarantine import Quarantined
from underway.retry import RetryPolicy
from underway.scheduling import Schedule

__all__ = [
    "AppNotFound",
    "Attempt",
    "Context",
    "DeadLetter",
    "Done",
    "EmbeddedPostgresError",
    "Fail",
    "ImportSideEffect",
    "InsideStep",
    "Interrupt",
    "InvalidOption",
    "Job",
    "JobDefinitionError",
    "NoDatabase",
    "PayloadError",
    "Quarantined",
    "Retry",
    "RetryPolicy",
    "Run",
    "RunCancelled",
    "RunFailed",
    "RunNotFound",
    "Schedule",
    "SchemaError",
    "SchemaMissing",
    "SchemaTooNew",
    "SchemaTooOld",
    "Status",
    "SupervisorFailed",
    "To",
    "Underway",
    "UnderwayError",
    "UnknownJob",
]
