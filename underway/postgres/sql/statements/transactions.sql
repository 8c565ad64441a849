-- mark_transaction: begin a step's own transaction, known to its worker by a setting and to supervisors by its name
--
-- Both end with the transaction. A COMMIT or ROLLBACK in the step shows by the missing token. A backend that has gone
-- on to another transaction (behind a pooler, perhaps for another client) has lost the name and is not terminated. SET,
-- not set_config(): a SELECT would take a snapshot, after which the step could not choose its isolation level.
set local underway.token = %(token)s;
set local application_name = %(name)s;

-- transaction_token: the token of the attempt whose transaction this is; null or empty in another transaction
--
-- The hand-over comes next, and locks the run until COMMIT. If the connection is lost in between, as by a pulled cable,
-- the server must notice, or no reaper could take the run back: without these settings it took a quarter of an hour.
-- They are set only now, because tcp_user_timeout would not allow a step to read slowly.
--
-- A step may have set another client encoding. The hand-over sends UTF-8, so the encoding is reset here.
select current_setting('underway.token', true),
    set_config('client_encoding', 'utf8', true),
    set_config('tcp_user_timeout', '10000', true),
    set_config('tcp_keepalives_idle', '5', true),
    set_config('tcp_keepalives_interval', '2', true),
    set_config('tcp_keepalives_count', '3', true);

-- lock_run: wait for a run that another transaction has locked; no row if the run no longer belongs to this attempt
select true as locked
from underway.run
where id = %(id)s and token = %(token)s and owner = %(owner)s and state = 'in_progress' and not cancel_requested
for update;

-- check_constraints: check all deferred constraints now, as COMMIT would
set constraints all immediate;

-- forget_step: leave nothing of a step in the session for the next one
--
-- DISCARD ALL without its DEALLOCATE ALL: behind a pooler, prepared statements belong to other clients.
reset session authorization;
reset all;
close all;
unlisten *;
discard temp;
discard sequences;
select pg_advisory_unlock_all();

-- terminate_transactions: end the backends in which the transactions of these names are still open
--
-- Only those of our own role: a session of another role may have any name, and the refusal to end it would be an error,
-- with which no backend was ended.
select pg_terminate_backend(pid)
from pg_stat_activity
where datname = current_database() and usename = session_user and application_name = any(%(names)s::text[]);
