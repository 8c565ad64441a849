create or replace view underway.runs as
select id, job, step, state, queue, priority, attempt_number as attempts_made, attempts, crashes, releases, created_at,
    due_at, lease_expires_at, owner, progress, input, null::json as result, null::text as error,
    null::timestamptz as finished_at, null::text as dead_letter, null::timestamptz as expires_at, cancel_requested
from underway.run
union all
select id, job, step, state, queue, priority, null, attempts, crashes, releases, created_at,
    null, null, null, null, input, result, error, finished_at, dead_letter, expires_at, null
from underway.finished_run;
comment on view underway.runs is 'live and finished runs together, for people and tools';
