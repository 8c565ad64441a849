-- Enqueues the runs that the attempts in `ended` have spawned.
--
-- A spawned run names the token of its attempt, so of two attempts at one run only the one that owns it has children.
insert into underway.run (id, job, step, queue, priority, keep, due_at, rank, state, concurrency_key, concurrency_limit,
    input)
select s.id, s.job, s.step, s.queue, s.priority, make_interval(secs => s.keep), placed.due_at, placed.rank,
    placed.state, s.concurrency_key, s.concurrency_limit, s.input::json
from json_to_recordset(%(spawned)s::json) as s (parent bigint, id uuid, job text, step text, queue text,
    priority smallint, keep float8, delay float8, concurrency_key text, concurrency_limit smallint, input text)
cross join lateral underway.place_run(
    statement_timestamp(), make_interval(secs => s.delay), s.priority, s.concurrency_key is not null
) placed
where s.parent in (select token from ended)
returning queue
