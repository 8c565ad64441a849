-- enqueue_run: one new run, in the caller's transaction; wakes a supervisor that has nothing to do
with placed as materialized (
    select clock_timestamp() + make_interval(secs => %(delay)s) as due
),
created as (
    insert into underway.run (id, job, step, queue, priority, keep, due, rank, state, input)
    select %(id)s, %(job)s, %(step)s, %(queue)s, %(priority)s, %(keep)s, due,
        due - %(priority)s * interval '1 minute',
        case when %(delay)s > 0 then 'waiting' else 'pending' end, %(input)s::text::jsonb
    from placed
    returning queue
)
select pg_notify('underway', queue)
from created
where exists (select from underway.supervisor where idle);

-- copy_runs: many new runs at once; the constant columns travel with each row
copy underway.run (id, input, job, step, queue, priority, keep, due, rank, state) from stdin;

-- clock: the database's time, which copy_runs cannot ask for; a number, for the caller's DateStyle may be any
select (extract(epoch from clock_timestamp()) * 1000000)::int8 as microseconds;

-- wake_supervisors: after copy_runs, in the same transaction
select pg_notify('underway', %(queue)s) where exists (select from underway.supervisor where idle);

-- run_status: where a run stands
select state::text from underway.run where id = %(id)s
union all
select state::text from underway.finished_run where id = %(id)s
limit 1;

-- run_outcome: how a run ended; no row while it is live
select state, result::text, error from underway.finished_run where id = %(id)s;

-- run_job: the job of a run
select job from underway.run where id = %(id)s
union all
select job from underway.finished_run where id = %(id)s
limit 1;

-- run_attempts: the attempts of a run in the order they were made; times as for clock
select step, number, outcome, error, (extract(epoch from started_at) * 1000000)::int8 as started_at,
    (extract(epoch from finished_at) * 1000000)::int8 as finished_at, host, pid, cpu_seconds, peak_rss
from underway.attempt
where run_id = %(id)s
order by token;

-- cancel_run: close a run, or have it closed by whoever runs it
select underway.cancel(%(id)s) as cancelled;

-- cancel_job: cancel all live runs of a job
select underway.cancel_all(%(job)s) as cancelled;

-- cancel_key: cancel the live run of a job that has this unique key
select underway.cancel_key(%(job)s, %(unique_key)s) as cancelled;
