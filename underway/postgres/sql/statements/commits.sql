-- finish_runs: close the runs of these attempts, if they are still owned under exactly these tokens
--
-- The fence is pairwise: (id, token) as given together, never two lists. With two lists, attempts whose tokens were
-- swapped deleted each other's runs. Rows that another transaction has locked are left for the next turn. A cancelled
-- run can only end as cancelled.
with ended as (
    delete from underway.run r
    using unnest(
        %(ids)s::uuid[], %(tokens)s::int8[], %(states)s::text[], %(payloads)s::text[], %(outcomes)s::text[],
        %(errors)s::text[], %(attempts)s::int[], %(crashes)s::int[], %(started)s::float8[], %(finished)s::float8[],
        %(pids)s::int[], %(cpu_seconds)s::float4[], %(peak_rss)s::int8[]
    ) as g (id, token, final, payload, outcome, error, attempts, crashes, started, finished, pid, cpu_seconds,
        peak_rss)
    where r.id = any(array(
            select l.id from underway.run l where l.id = any(%(ids)s::uuid[]) order by l.id for update skip locked
        ))
        and r.id = g.id and r.token = g.token and r.owner = %(owner)s
        and r.state = 'in_progress' and r.cancel_requested = (g.final = 'cancelled')
    returning r.id, r.token, r.created_at, r.scheduled_at, r.keep, r.attempt_number + 1 as attempt_number, r.releases,
        r.priority, r.concurrency_limit, r.queue, r.job, r.step, r.schedule, r.unique_key, r.concurrency_key,
        r.holds_key, r.input, g.final, g.payload, g.outcome, g.error, g.attempts as final_attempts,
        g.crashes as final_crashes, g.started, g.finished, g.pid, g.cpu_seconds, g.peak_rss
),
filed as (
    :file_finished_runs
),
recorded as (
    :record_attempts
),
spawned as (
    :enqueue_spawned
)
select token,
    case when exists (select from spawned) and exists (select from underway.supervisor where idle)
        then (select count(underway.wake(queue)) from (select distinct queue from spawned) woken) end as woken,
    (
        select underway.grant_keys(array_agg(queue), array_agg(concurrency_key)) from ended where holds_key
    ) as locked_keys
from ended;

-- continue_runs: put these runs at their next step, or at the same step again; fenced like finish_runs
--
-- With a lease the run stays with this supervisor, claimed anew: its next step needs no claim of its own. Not in a
-- paused queue.
--
-- Without a delay a run keeps its place in line. (When each step went to the end of the line, a thousand reports of
-- four steps were all begun before the first was finished.) A run whose next step has another key, or none, gives up
-- the key that it holds. For a new key it waits, so it gets no lease.
with given as (
    select *, case when queue <> all(array(select name from underway.queue where paused)) then wanted_lease end as lease
    from unnest(
        %(ids)s::uuid[], %(tokens)s::int8[], %(steps)s::text[], %(queues)s::text[], %(priorities)s::int2[],
        %(keeps)s::float8[], %(concurrency_keys)s::text[], %(concurrency_limits)s::int2[], %(payloads)s::text[],
        %(attempt_numbers)s::int[], %(attempts)s::int[], %(crashes)s::int[], %(releases)s::int[], %(delays)s::float8[],
        %(ran_steps)s::text[], %(ran_numbers)s::int[], %(leases)s::float8[], %(max_crashes)s::int[],
        %(outcomes)s::text[], %(errors)s::text[], %(started)s::float8[], %(finished)s::float8[], %(pids)s::int[],
        %(cpu_seconds)s::float4[], %(peak_rss)s::int8[]
    ) as given (id, token, step, queue, priority, keep, concurrency_key, concurrency_limit, payload, attempt_number,
        attempts, crashes, releases, delay, ran_step, ran_number, wanted_lease, max_crashes, outcome, error, started,
        finished, pid, cpu_seconds, peak_rss)
),
-- The runs that are not locked by another transaction, with the keys that they have had until now.
locked as materialized (
    select l.id, l.holds_key, l.queue, l.concurrency_key
    from underway.run l
    where l.id = any(%(ids)s::uuid[])
    order by l.id
    for no key update skip locked
),
-- The runs for which the fence held, at their next place.
ended as (
    update underway.run r
    set step = g.step,
        queue = coalesce(g.queue, r.queue),
        concurrency_key = case when g.queue is null then r.concurrency_key else g.concurrency_key end,
        concurrency_limit = case when g.queue is null then r.concurrency_limit else g.concurrency_limit end,
        holds_key = underway.keeps_key(r.holds_key, r.queue, r.concurrency_key, g.queue, g.concurrency_key),
        priority = coalesce(g.priority, r.priority),
        keep = coalesce(make_interval(secs => g.keep), r.keep),
        input = coalesce(g.payload::json, r.input),
        attempt_number = least(g.attempt_number, 2000000000),
        attempts = least(g.attempts, 2000000000),
        crashes = least(g.crashes, 2000000000),
        releases = least(g.releases, 2000000000),
        (state, due_at, rank) = (
            select case when g.lease is null then placed.state else 'in_progress' end, placed.due_at, placed.rank
            from underway.place_run(
                case when g.delay > 0 then statement_timestamp() else r.due_at end,
                make_interval(secs => g.delay),
                coalesce(g.priority, r.priority),
                g.concurrency_key is not null and not underway.keeps_key(
                    r.holds_key, r.queue, r.concurrency_key, g.queue, g.concurrency_key
                )
            ) placed
        ),
        token = case when g.lease is null then r.token else nextval('underway.token') end,
        owner = case when g.lease is null then null else r.owner end,
        lease_expires_at = clock_timestamp() + make_interval(secs => g.lease),
        max_crashes = coalesce(g.max_crashes, r.max_crashes),
        progress = null
    from given g
    where r.id = any(array(select id from locked))
        and r.id = g.id and r.token = g.token and r.owner = %(owner)s
        and r.state = 'in_progress' and not r.cancel_requested
    returning r.id, g.token, case when g.lease is not null then r.token end as kept_token, r.queue, r.state,
        r.concurrency_key, r.holds_key, g.ran_step as step, g.ran_number as attempt_number, g.outcome, g.error,
        g.started, g.finished, g.pid, g.cpu_seconds, g.peak_rss
),
recorded as (
    :record_attempts
),
spawned as (
    :enqueue_spawned
),
-- Queues in which there is now a run to claim.
supplied as (
    select queue from spawned union select queue from ended where state = 'pending'
),
-- The keys that these runs have given up, and those for which they now wait.
free_or_wanted as (
    select queue, concurrency_key from locked
    where holds_key and id in (select id from ended where not holds_key)
    union all
    select queue, concurrency_key from ended where concurrency_key is not null and not holds_key
)
select token, kept_token,
    case when exists (select from underway.supervisor where idle)
        then (select count(underway.wake(queue)) from supplied) end as woken,
    (select underway.grant_keys(array_agg(queue), array_agg(concurrency_key)) from free_or_wanted) as locked_keys
from ended;

-- drop_run: delete a run of ours that was inserted with the ID of a finished run, because it cannot be finished itself
--
-- `on conflict do nothing` in finish_runs would work too, but would cost every other run a microsecond.
with locked as materialized (
    select l.id from underway.run l
    where l.id = %(id)s and exists (select from underway.finished_run f where f.id = l.id)
    for update skip locked
),
dropped as (
    delete from underway.run r
    where r.id = any(array(select id from locked))
        and r.token = %(token)s and r.owner = %(owner)s and r.state = 'in_progress'
    returning r.queue, r.concurrency_key, r.holds_key
)
select case when holds_key then underway.grant_keys(array[queue], array[concurrency_key]) end as locked_keys
from dropped;

-- owned_runs: which of these runs this supervisor still owns, under which tokens, and whether they are cancelled
select id::text, token, cancel_requested
from underway.run
where id = any(%(ids)s::uuid[]) and owner = %(owner)s and state = 'in_progress';

-- recorded_attempts: which of these attempts are already written, and how they ended
--
-- They were written by a commit whose answer was lost, or by the step's own transaction, which takes precedence over
-- the supervisor's verdict. An attempt that is recorded as lost was written by a reaper, not by its supervisor.
select a.run_id::text, a.token, a.outcome
from underway.attempt a
join unnest(%(ids)s::uuid[], %(tokens)s::int8[]) as g (id, token) on a.run_id = g.id and a.token = g.token
where a.run_id = any(%(ids)s::uuid[]) and a.outcome <> 'lost';
