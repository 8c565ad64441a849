-- enqueue_run: enqueue a run without keys, in the caller's transaction; wakes an idle supervisor that serves its queue
select underway.insert_run(
    %(id)s, %(job)s, %(step)s, %(queue)s, %(priority)s::int2, %(keep)s, %(delay)s, %(input)s
);

-- enqueue_keyed_runs: enqueue runs with keys; returns them, and the live runs that have their unique keys already
--
-- In the order of the unique keys, or two such statements deadlock. The order is that of their bytes, whatever the
-- database's collation is, because the client splits many runs into several statements. A run that another transaction
-- has inserted since this statement began is not returned at all: ask again.
--
-- Of the runs that wait for one key, a promoter needs to look at one only; the others join the line at once. That one
-- must not have a unique key, because then it may not be inserted.
with given as (
    select id, input, nullif(unique_key, '') as unique_key, nullif(concurrency_key, '') as concurrency_key, n,
        unique_key <> '' or %(delay)s > 0 or row_number() over (partition by concurrency_key order by n) = 1
        as looked_at
    from unnest(%(ids)s::uuid[], %(inputs)s::text[], %(unique_keys)s::text[], %(concurrency_keys)s::text[])
        with ordinality as given (id, input, unique_key, concurrency_key, n)
),
clock as materialized (
    select clock_timestamp() as enqueued_at
),
created as (
    insert into underway.run (id, job, step, queue, priority, keep, due_at, rank, state, unique_key, concurrency_key,
        concurrency_limit, input)
    select g.id, %(job)s, %(step)s, %(queue)s, %(priority)s, %(keep)s,
        case when g.concurrency_key is null or g.looked_at then placed.due_at end, placed.rank, placed.state,
        g.unique_key, g.concurrency_key, %(concurrency_limit)s, g.input::json
    from given g
    cross join clock
    cross join lateral underway.place_run(
        clock.enqueued_at, make_interval(secs => %(delay)s), %(priority)s, g.concurrency_key is not null
    ) placed
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

-- clock: the database's time in microseconds; a number, because the caller's DateStyle may be any
select (extract(epoch from clock_timestamp()) * 1000000)::int8 as microseconds;

-- placement: where runs enqueued now are put, for copy_runs; times as for clock
with clock as materialized (
    select clock_timestamp() as enqueued_at
)
select placed.state, (extract(epoch from placed.due_at) * 1000000)::int8 as due_at,
    (extract(epoch from placed.rank) * 1000000)::int8 as rank
from clock
cross join lateral underway.place_run(clock.enqueued_at, make_interval(secs => %(delay)s), %(priority)s, false) placed;

-- copy_runs: enqueue many runs without keys; the constant columns travel with each row
--
-- The encoding is always UTF-8, whatever the caller's connection uses: with LATIN1 each umlaut arrived as two
-- characters.
copy underway.run (id, input, job, step, queue, priority, keep, due_at, rank, state) from stdin (encoding 'utf8');

-- wake_supervisors: after copy_runs, in the same transaction
select underway.wake(%(queue)s);

-- run_status: the state of a run
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

-- run_attempts: the attempts of a run in their order; times as for clock
select step, attempt_number, outcome, error, (extract(epoch from started_at) * 1000000)::int8 as started_at,
    (extract(epoch from finished_at) * 1000000)::int8 as finished_at, host, pid, cpu_seconds, peak_rss
from underway.attempt
where run_id = %(id)s
order by token;

-- cancel_run: close a run, or have its supervisor close it
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
