-- finish_runs: close the runs of these attempts; only those still owned under exactly this token
--
-- The fence is pairwise: (id, token) as given together, never two lists. With two lists, attempts whose tokens were
-- swapped deleted each other's runs. A row that somebody else has locked is left for the next turn.
-- Of a run that somebody has cancelled no other end is written than that. What an attempt has spawned names its token,
-- so that of two attempts at one run only the one that holds it has children.
--
-- The time is the statement's, since in a step's own transaction now() is when that began.
with gone as (
    delete from underway.run r
    using unnest(
        %(ids)s::uuid[], %(tokens)s::int8[], %(states)s::text[], %(payloads)s::text[], %(outcomes)s::text[],
        %(errors)s::text[], %(attempts)s::int[], %(crashes)s::int[], %(started)s::float8[], %(ended)s::float8[],
        %(pids)s::int[], %(cpu_seconds)s::float4[], %(peak_rss)s::int8[]
    ) as g (id, token, final, payload, outcome, error, attempts, crashes, started, ended, pid, cpu_seconds, peak_rss)
    where r.id = any(array(
            select l.id from underway.run l where l.id = any(%(ids)s::uuid[]) order by l.id for update skip locked
        ))
        and r.id = g.id and r.token = g.token and r.owner = %(owner)s
        and r.state = 'in_progress' and r.cancel_requested = (g.final = 'cancelled')
    returning r.id, r.token, r.created_at, r.scheduled_for, r.keep, r.number, r.releases, r.priority, r.key_limit,
        r.queue, r.job, r.step, r.schedule, r.unique_key, r.concurrency_key, r.holds_key, r.input, g.final, g.payload,
        g.outcome, g.error, g.attempts, g.crashes, g.started, g.ended, g.pid, g.cpu_seconds, g.peak_rss
),
filed as (
    insert into underway.finished_run (id, created_at, expires_at, scheduled_for, keep, attempts, crashes, releases,
        priority, key_limit, quarantined, state, queue, job, step, schedule, unique_key, concurrency_key, dead_letter,
        error, result, input)
    select id, created_at, statement_timestamp() + keep, scheduled_for, keep, attempts, crashes, releases,
        priority, key_limit, final = 'failed' and outcome in ('crashed', 'out_of_memory'), final, queue, job, step,
        schedule, unique_key, concurrency_key,
        case when final = 'failed' then (select q.dead_letter from underway.queue q where q.name = gone.queue) end,
        error, case when final = 'succeeded' then payload::json end,
        case when final <> 'succeeded' then input end
    from gone
),
noted as (
    insert into underway.attempt (run_id, token, number, pid, started_at, finished_at, peak_rss, cpu_seconds,
        step, outcome, host, error)
    select id, token, number + 1, pid, clock_timestamp() - make_interval(secs => started),
        clock_timestamp() - make_interval(secs => ended), peak_rss, cpu_seconds, step, outcome, %(host)s, error
    from gone
    where started is not null
),
spawned as (
    insert into underway.run (id, job, step, queue, priority, keep, due, rank, state, concurrency_key, key_limit,
        input)
    select s.id, s.job, s.step, s.queue, s.priority, make_interval(secs => s.keep),
        statement_timestamp() + make_interval(secs => s.delay),
        case when s.delay > 0 and s.concurrency_key is not null then 'infinity'
            else statement_timestamp() + make_interval(secs => s.delay) - s.priority * interval '1 minute' end,
        case when s.delay > 0 or s.concurrency_key is not null then 'waiting' else 'pending' end,
        s.concurrency_key, s.key_limit, s.input::json
    from json_to_recordset(%(spawned)s::json) as s (parent bigint, id uuid, job text, step text, queue text,
        priority smallint, keep float8, delay float8, concurrency_key text, key_limit smallint, input text)
    where s.parent in (select token from gone)
    returning queue
)
select token,
    case when exists (select from spawned) and exists (select from underway.supervisor where idle)
        then (select count(underway.wake(queue)) from (select distinct queue from spawned) woken) end as woken,
    (select underway.pass_keys(array_agg(queue), array_agg(concurrency_key)) from gone where holds_key) as locked_keys
from gone;

-- continue_runs: put these runs at their next step, or at the same step again; fenced like finish_runs
--
-- With a lease the run stays with this supervisor, claimed anew: its next step needs no claim of its own. But not in a
-- queue that is paused.
-- Without a delay a run keeps its place in line. (When each step went to the end of it, a thousand reports of four
-- steps were all begun before the first was finished.)
-- With another key, or none, it gives up the one it holds; for a new one it has to wait, so it is given no lease.
with mine as materialized (
    select l.id, l.holds_key, l.queue, l.concurrency_key
    from underway.run l
    where l.id = any(%(ids)s::uuid[]) order by l.id for no key update skip locked
),
continued as (
    update underway.run r
    set step = g.step,
        queue = coalesce(g.queue, r.queue),
        concurrency_key = case when g.queue is null then r.concurrency_key else g.concurrency_key end,
        key_limit = case when g.queue is null then r.key_limit else g.key_limit end,
        holds_key = underway.keeps_key(r.holds_key, r.queue, r.concurrency_key, g.queue, g.concurrency_key),
        priority = coalesce(g.priority, r.priority),
        keep = coalesce(make_interval(secs => g.keep), r.keep),
        input = coalesce(g.payload::json, r.input),
        number = least(g.number, 2000000000),
        attempts = least(g.attempts, 2000000000),
        crashes = least(g.crashes, 2000000000),
        releases = least(g.releases, 2000000000),
        due = case when g.delay > 0 then statement_timestamp() + make_interval(secs => g.delay) else r.due end,
        rank = case
            when g.delay > 0 and g.concurrency_key is not null and not underway.keeps_key(r.holds_key, r.queue,
                r.concurrency_key, g.queue, g.concurrency_key) then 'infinity'
            else case when g.delay > 0 then statement_timestamp() + make_interval(secs => g.delay) else r.due end
                - coalesce(g.priority, r.priority) * interval '1 minute'
        end,
        state = case
            when stay.lease is not null then 'in_progress'
            when g.delay > 0 or (g.concurrency_key is not null and not underway.keeps_key(r.holds_key, r.queue,
                r.concurrency_key, g.queue, g.concurrency_key)) then 'waiting'
            else 'pending'
        end,
        token = case when stay.lease is not null then nextval('underway.token') else r.token end,
        owner = case when stay.lease is not null then r.owner end,
        lease_until = clock_timestamp() + make_interval(secs => stay.lease),
        max_crashes = coalesce(g.max_crashes, r.max_crashes),
        progress = null
    from unnest(
        %(ids)s::uuid[], %(tokens)s::int8[], %(steps)s::text[], %(queues)s::text[], %(priorities)s::int2[],
        %(keeps)s::float8[], %(concurrency_keys)s::text[], %(key_limits)s::int2[], %(payloads)s::text[],
        %(numbers)s::int[], %(attempts)s::int[], %(crashes)s::int[], %(releases)s::int[], %(delays)s::float8[],
        %(ran_steps)s::text[], %(ran_numbers)s::int[],
        %(leases)s::float8[], %(max_crashes)s::int[], %(outcomes)s::text[], %(errors)s::text[],
        %(started)s::float8[], %(ended)s::float8[], %(pids)s::int[], %(cpu_seconds)s::float4[], %(peak_rss)s::int8[]
    ) as g (id, token, step, queue, priority, keep, concurrency_key, key_limit, payload, number, attempts, crashes,
        releases, delay, ran_step, ran_number, wanted, max_crashes, outcome, error, started, ended, pid, cpu_seconds,
        peak_rss)
    cross join lateral (
        select case when g.queue <> all(array(select name from underway.queue where paused)) then g.wanted end as lease
    ) stay
    where r.id = any(array(select id from mine))
        and r.id = g.id and r.token = g.token and r.owner = %(owner)s
        and r.state = 'in_progress' and not r.cancel_requested
    returning r.id, g.token, case when stay.lease is not null then r.token end as kept_token, r.queue, r.state,
        r.concurrency_key, r.holds_key, g.ran_step, g.ran_number, g.outcome, g.error, g.started, g.ended, g.pid,
        g.cpu_seconds, g.peak_rss
),
noted as (
    insert into underway.attempt (run_id, token, number, pid, started_at, finished_at, peak_rss, cpu_seconds,
        step, outcome, host, error)
    select id, token, ran_number, pid, clock_timestamp() - make_interval(secs => started),
        clock_timestamp() - make_interval(secs => ended), peak_rss, cpu_seconds, ran_step, outcome, %(host)s, error
    from continued
    where started is not null
),
spawned as (
    insert into underway.run (id, job, step, queue, priority, keep, due, rank, state, concurrency_key, key_limit,
        input)
    select s.id, s.job, s.step, s.queue, s.priority, make_interval(secs => s.keep),
        statement_timestamp() + make_interval(secs => s.delay),
        case when s.delay > 0 and s.concurrency_key is not null then 'infinity'
            else statement_timestamp() + make_interval(secs => s.delay) - s.priority * interval '1 minute' end,
        case when s.delay > 0 or s.concurrency_key is not null then 'waiting' else 'pending' end,
        s.concurrency_key, s.key_limit, s.input::json
    from json_to_recordset(%(spawned)s::json) as s (parent bigint, id uuid, job text, step text, queue text,
        priority smallint, keep float8, delay float8, concurrency_key text, key_limit smallint, input text)
    where s.parent in (select token from continued)
    returning queue
)
select token, kept_token,
    case when exists (select from underway.supervisor where idle)
        then (select count(underway.wake(queue)) from (
            select queue from spawned union select queue from continued where state = 'pending') woken) end as woken,
    (
        select underway.pass_keys(array_agg(queue), array_agg(concurrency_key))
        from (
            select queue, concurrency_key from mine
            where holds_key and id in (select id from continued where not holds_key)
            union all
            select queue, concurrency_key from continued where concurrency_key is not null and not holds_key
        ) given_up_or_wanted
    ) as locked_keys
from continued;

-- drop_run: delete a run of ours that was inserted with the ID of a finished run, because it cannot be finished itself
--
-- `on conflict do nothing` in finish_runs would work too, but would cost every other run a microsecond.
with mine as materialized (
    select l.id from underway.run l
    where l.id = %(id)s and exists (select from underway.finished_run f where f.id = l.id)
    for update skip locked
),
gone as (
    delete from underway.run r
    where r.id = any(array(select id from mine))
        and r.token = %(token)s and r.owner = %(owner)s and r.state = 'in_progress'
    returning r.queue, r.concurrency_key, r.holds_key
)
select case when holds_key then underway.pass_keys(array[queue], array[concurrency_key]) end as locked_keys
from gone;

-- owned_runs: which of these runs this supervisor still owns, under which token, and whether somebody has cancelled them
select id::text, token, cancel_requested
from underway.run
where id = any(%(ids)s::uuid[]) and owner = %(owner)s and state = 'in_progress';

-- recorded_attempts: which of these attempts are already written, and how they ended
--
-- By a commit whose answer was lost, or by the step's own transaction, which beats any verdict of ours. An attempt that
-- is recorded as lost was written by a reaper, not by us.
select a.run_id::text, a.token, a.outcome
from underway.attempt a
join unnest(%(ids)s::uuid[], %(tokens)s::int8[]) as g (id, token) on a.run_id = g.id and a.token = g.token
where a.run_id = any(%(ids)s::uuid[]) and a.outcome <> 'lost';
