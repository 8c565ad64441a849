-- Whoever redrives or discards many runs locks them in one order, and enqueues their unique keys in another: always the
-- same ones. Two that met on their way in different orders ended with "deadlock detected", and so did an innocent
-- who enqueued. And a cancel is final for whoever redrives by many ids too, as it has been by one since migration 6:
-- older code, which asks for the runs of a label, gets what it gets for any run that has not failed.
-- oldest code: 1

-- The finished runs in the order of their ids, all of them before the first key; then the keys in the order in which
-- enqueue_keyed_runs takes them. A run whose key somebody else has got in the meantime stays as it is.
create or replace function underway.redrive_runs(run_ids uuid[], input json default null) returns int
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    redriven int;
    woken int;
begin
    perform from underway.finished_run f where f.id = any(run_ids) order by f.id for update;
    with failed as (
        select f.*, f.unique_key is null
            or row_number() over (partition by f.job, f.unique_key order by f.finished_at, f.id) = 1 as first
        from underway.finished_run f
        where f.id = any(run_ids) and f.state = 'failed'
    ),
    back as (
        insert into underway.run (id, created_at, due, rank, scheduled_for, keep, priority, key_limit, state, queue,
            job, step, schedule, unique_key, concurrency_key, input)
        select id, created_at, now(), now() - priority * interval '1 minute', scheduled_for, keep, priority, key_limit,
            case when concurrency_key is null then 'pending' else 'waiting' end, queue, job, step, schedule,
            unique_key, concurrency_key, coalesce(redrive_runs.input, failed.input)
        from failed
        where first
        order by job, unique_key collate "C"
        on conflict (job, unique_key) where unique_key is not null do nothing
        returning id, queue
    ),
    gone as (
        delete from underway.finished_run f where f.id in (select id from back)
    )
    select count(*), (select count(underway.wake(queue)) from (select distinct queue from back) queues)
    into redriven, woken
    from back;
    return redriven;
end
$$;
comment on function underway.redrive_runs is
    'lets failed runs go on at their last step, counters at zero; how many, all others are passed over';

create or replace function underway.discard_all(dead_letter text) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    with labelled as materialized (
        select f.id from underway.finished_run f
        where f.dead_letter = discard_all.dead_letter
        order by f.id
        for update
    ),
    discarded as (
        update underway.finished_run f set dead_letter = null
        where f.id in (select id from labelled) and f.dead_letter = discard_all.dead_letter
        returning 1
    )
    select count(*)::int from discarded
$$;

-- Two who ask all supervisors at the same time, each in the order in which it finds them.
create or replace function underway.shutdown(supervisor uuid default null) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_notify('underway', 'shutdown');
    insert into underway.stop_request (supervisor)
    select s.id from underway.supervisor s
    where shutdown.supervisor is null or s.id = shutdown.supervisor
    order by s.id
    on conflict do nothing;
    return query select s.id from underway.supervisor s
    where shutdown.supervisor is null or s.id = shutdown.supervisor;
end
$$;
