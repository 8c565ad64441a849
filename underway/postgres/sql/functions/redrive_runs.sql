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
