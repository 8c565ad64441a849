-- Writes the rows of `ended` to finished_run. This is the only definition of how a finished run is filed.
--
-- `ended` has the columns of underway.run, and those of the end: final (the state), outcome (of the last attempt),
-- final_attempts, final_crashes, error, payload (the result as text).
--
-- statement_timestamp(), because in a step's own transaction now() is the instant at which the transaction began.
insert into underway.finished_run (id, created_at, expires_at, scheduled_at, keep, attempts, crashes, releases,
    priority, concurrency_limit, quarantined, state, queue, job, step, schedule, unique_key, concurrency_key,
    dead_letter, error, result, input)
select id, created_at, statement_timestamp() + keep, scheduled_at, keep, final_attempts, final_crashes, releases,
    priority, concurrency_limit, final = 'failed' and outcome in ('crashed', 'out_of_memory', 'lost'), final, queue,
    job, step, schedule, unique_key, concurrency_key,
    case when final = 'failed' then (select q.dead_letter from underway.queue q where q.name = ended.queue) end,
    error, case when final = 'succeeded' then payload::json end, case when final <> 'succeeded' then input end
from ended
