-- Runs that a schedule enqueues have keys, and know their schedule also when they are finished and redriven.
-- oldest code: 1

-- A slot's unique key may be taken by a transaction that is still open. A client waits for it; a supervisor waits for
-- nobody, and looks again a second later. Ten milliseconds, since even a page added to the table is waited for.
create function underway.enqueue_slots(
    run_ids uuid[],
    slots timestamptz[],
    schedule text,
    job text,
    step text,
    queue text,
    priority smallint,
    keep interval,
    delay interval,
    unique_key text,
    concurrency_key text,
    key_limit smallint,
    input json
) returns int
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '10ms'
as $$
#variable_conflict use_column
declare
    delayed boolean := enqueue_slots.delay > interval '0';
    due timestamptz := now() + enqueue_slots.delay;
    enqueued int;
begin
    unique_key := underway.fill_key(enqueue_slots.unique_key, enqueue_slots.input);
    concurrency_key := underway.fill_key(enqueue_slots.concurrency_key, enqueue_slots.input);
    insert into underway.run (id, job, step, queue, priority, keep, due, rank, state, scheduled_for, schedule,
        unique_key, concurrency_key, key_limit, input)
    select slot.id, enqueue_slots.job, enqueue_slots.step, enqueue_slots.queue, enqueue_slots.priority,
        enqueue_slots.keep, due,
        case when delayed and enqueue_slots.concurrency_key is not null then 'infinity'
            else due - enqueue_slots.priority * interval '1 minute' end,
        case when delayed or enqueue_slots.concurrency_key is not null then 'waiting' else 'pending' end,
        slot.at, enqueue_slots.schedule, enqueue_slots.unique_key, enqueue_slots.concurrency_key,
        enqueue_slots.key_limit, enqueue_slots.input
    from unnest(run_ids, slots) as slot (id, at)
    order by slot.at
    on conflict (job, unique_key) where unique_key is not null do nothing;
    get diagnostics enqueued = row_count;
    return enqueued;
exception
    when lock_not_available then
        return null;
    -- The stored input does not fit a key of today's code: nothing is wrong with the connection.
    when sqlstate 'UW003' then
        raise exception '%', sqlerrm using errcode = 'data_exception';
end
$$;
comment on function underway.enqueue_slots is
    'enqueues a run for each slot, but none where a live run has the unique key; how many. Null: who has it is undecided';

alter table underway.finished_run add column schedule text;
comment on column underway.finished_run.schedule is
    'as in run: redriven, it is a live run of its schedule again, which may not want another one beside it';

-- Both as before, but for the schedule.

create or replace function underway.cancel_runs(run_ids uuid[]) returns int
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    closed int;
    requested int;
    locked_keys text[];
begin
    -- Who claims, commits or takes back one of them at this moment comes first, and what is found then stays.
    perform from underway.run r where r.id = any(run_ids) order by r.id for update;
    with gone as (
        delete from underway.run r
        where r.id = any(run_ids) and r.state in ('pending', 'waiting')
        returning r.*
    ),
    filed as (
        insert into underway.finished_run (id, created_at, expires_at, scheduled_for, keep, attempts, crashes, releases,
            priority, key_limit, state, queue, job, step, schedule, unique_key, concurrency_key, error, input)
        select id, created_at, now() + keep, scheduled_for, keep, attempts, crashes, releases, priority, key_limit,
            'cancelled', queue, job, step, schedule, unique_key, concurrency_key, 'cancelled', input
        from gone
        on conflict (id) do nothing
    )
    select count(*), (
        select underway.pass_keys(array_agg(queue), array_agg(concurrency_key)) from gone where holds_key
    ) into closed, locked_keys from gone;
    update underway.run r
    set cancel_requested = true
    where r.id = any(run_ids) and r.state = 'in_progress' and not r.cancel_requested;
    get diagnostics requested = row_count;
    if requested > 0 then
        perform pg_notify('underway', 'cancel');
    end if;
    return closed + requested;
end
$$;

create or replace function underway.redrive_runs(run_ids uuid[], input json default null) returns int
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    redriven int;
    woken int;
begin
    with failed as (
        select f.id, f.unique_key is null
            or row_number() over (partition by f.job, f.unique_key order by f.finished_at, f.id) = 1 as first
        from underway.finished_run f
        where f.id = any(run_ids) and f.state in ('failed', 'cancelled')
            and not exists (select from underway.run r where r.job = f.job and r.unique_key = f.unique_key)
    ),
    gone as (
        delete from underway.finished_run f
        where f.id in (select id from failed where first)
        returning f.*
    ),
    back as (
        insert into underway.run (id, created_at, due, rank, scheduled_for, keep, priority, key_limit, state, queue,
            job, step, schedule, unique_key, concurrency_key, input)
        select id, created_at, now(), now() - priority * interval '1 minute', scheduled_for, keep, priority, key_limit,
            case when concurrency_key is null then 'pending' else 'waiting' end, queue, job, step, schedule,
            unique_key, concurrency_key, coalesce(redrive_runs.input, gone.input)
        from gone
        returning queue
    )
    select count(*),
        case when exists (select from underway.supervisor s where s.idle)
            then (select count(pg_notify('underway', queue)) from (select distinct queue from back) queues) end
    into redriven, woken
    from back;
    return redriven;
end
$$;
