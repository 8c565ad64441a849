-- mark_transaction: begin a step's own transaction, known to its worker by a setting and to supervisors by its name
--
-- Both end with the transaction: a COMMIT or ROLLBACK in the step is seen by the missing token, and a backend that
-- has gone on to something else (behind a pooler, for a stranger) has lost the name and is not terminated. SET, not
-- set_config(): a SELECT would take a snapshot, and the step could not choose its isolation level any more.
set local underway.token = %(token)s;
set local application_name = %(name)s;

-- transaction_token: whose transaction this is; null or empty if it is not the one that was begun for a step
--
-- The hand-over comes next, and locks the run until COMMIT. If we vanish in between without a word, as behind a pulled
-- cable, the server must notice, or nobody could take the run back: left to itself it took a quarter of an hour. Only
-- from here on: a step may take its time to read what the server has for it, which the first of these would not allow.
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

-- check_constraints: all that are deferred to the COMMIT, as that would
set constraints all immediate;

-- forget_step: leave nothing of a step in the session for the next one
--
-- All of DISCARD ALL but for the prepared statements, which behind a pooler belong to strangers.
reset session authorization;
reset all;
close all;
unlisten *;
discard temp;
discard sequences;
select pg_advisory_unlock_all();

-- terminate_transactions: end the backends in which the transactions of these names are still open
--
-- Those of our own role: another role's session may call itself what it likes, and the refusal to end it would be an
-- error, with which none was ended.
select pg_terminate_backend(pid)
from pg_stat_activity
where datname = current_database() and usename = session_user and application_name = any(%(names)s::text[]);
