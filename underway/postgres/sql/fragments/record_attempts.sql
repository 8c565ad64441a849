-- Writes an attempt row for each row of `ended` whose attempt has started.
--
-- Postgres is told how long ago things happened, not when, because its clock decides.
insert into underway.attempt (run_id, token, attempt_number, pid, started_at, finished_at, peak_rss, cpu_seconds, step,
    outcome, host, error)
select id, token, attempt_number, pid, clock_timestamp() - make_interval(secs => started),
    clock_timestamp() - make_interval(secs => finished), peak_rss, cpu_seconds, step, outcome, %(host)s, error
from ended
where started is not null
