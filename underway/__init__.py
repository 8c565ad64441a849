"""Durable step functions on Postgres, executed by a supervisor of worker processes."""

from underway.app import Underway
from underway.client.context import Context
from underway.client.dead_letters import DeadLetter
from underway.client.job import Job
from underway.client.quarantine import Quarantined
from underway.client.run import Run
from underway.client.run_state import Attempt, Status
from underway.client.schedules import Schedule
from underway.definition.retry import RetryPolicy
from underway.definition.transition import Done, To
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
