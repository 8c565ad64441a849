-- enqueue_run: one new run, in the caller's transaction; wakes a supervisor that serves it and has nothing to do
select underway.insert_run(
    %(id)s, %(job)s, %(step)s, %(queue)s, %(priority)s::int2, %(keep)s, %(delay)s, %(input)s
);

-- enqueue_keyed_runs: new runs with keys; beside them, those that were live already under a unique key of these
--
-- In the order of the unique keys, or two of these deadlock; of their bytes, as the client has cut many into several of
-- these, whatever order the database's language has. A run that was inserted by somebody else after this began
-- is in neither part of the answer: ask again. Of runs in line for the same key, one is enough for a promoter to look
-- at; but it must not be one that is not inserted after all.
with placed as materialized (
    select clock_timestamp() + make_interval(secs => %(delay)s) as due
),
given as (
    select *, unique_key is not null or %(delay)s > 0 or row_number() over (partition by concurrency_key order by n) = 1
        as looked_at
    from unnest(%(ids)s::uuid[], %(inputs)s::text[], %(unique_keys)s::text[], %(concurrency_keys)s::text[])
        with ordinality as given (id, input, unique_key, concurrency_key, n)
),
created as (
    insert into underway.run (id, job, step, queue, priority, keep, due, rank, state, unique_key, concurrency_key,
        key_limit, input)
    select g.id, %(job)s, %(step)s, %(queue)s, %(priority)s, %(keep)s,
        case when g.concurrency_key is null or g.looked_at then placed.due else '9999-12-31 00:00+00' end,
        case when g.concurrency_key is not null and %(delay)s > 0 then 'infinity'
            else placed.due - %(priority)s * interval '1 minute' end,
        case when g.concurrency_key is not null or %(delay)s > 0 then 'waiting' else 'pending' end,
        g.unique_key, g.concurrency_key, %(key_limit)s, g.input::json
    from given g cross join placed
    order by g.unique_key collate "C", g.n
    on conflict (job, unique_key) where unique_key is not null do nothing
    returning id, queue, unique_key
),
woken as (
    select underway.wake(queue) from created limit 1
)
select id, unique_key, true as created from created
union all
select id, unique_key, false
from underway.run
where job = %(job)s and unique_key = any(%(unique_keys)s::text[])
union all
select null, null, null from woken;

-- copy_runs: many new runs at once; the constant columns travel with each row
--
-- The encoding is always UTF-8, whatever the caller's connection uses: with LATIN1 each umlaut arrived as two
-- characters.
copy underway.run (id, input, job, step, queue, priority, keep, due, rank, state) from stdin (encoding 'utf8');

-- clock: the database's time, which copy_runs cannot ask for; a number, for the caller's DateStyle may be any
select (extract(epoch from clock_timestamp()) * 1000000)::int8 as microseconds;

-- wake_supervisors: after copy_runs, in the same transaction
select underway.wake(%(queue)s);

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

-- cancel_concurrency_key: cancel the live runs of a job that have this concurrency key
select underway.cancel_concurrency_key(%(job)s, %(concurrency_key)s) as cancelled;

-- live_by_step: the live runs of a job per step, and how many of them have a concurrency key
select step, count(*) as runs, count(concurrency_key) as keyed
from underway.run
where job = %(job)s and not cancel_requested
group by step
order by step;
