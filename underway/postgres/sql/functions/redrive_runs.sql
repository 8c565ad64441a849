-- A run goes back under its own id to the step that failed. A run with a concurrency key waits in line like a new one.
-- Of several runs with one unique key only one can be live; the others stay as they are.
--
-- Finished runs are locked in the order of their ids, all of them before the first unique key; then the keys are taken
-- in the order in which enqueue_keyed_runs takes them. (Two transactions that redrove the same runs in different orders
-- ended with "deadlock detected", and so did an innocent transaction that enqueued.)
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
        insert into underway.run (id, created_at, due_at, rank, scheduled_at, keep, priority, concurrency_limit, state,
            queue, job, step, schedule, unique_key, concurrency_key, input)
        select id, created_at, placed.due_at, placed.rank, scheduled_at, keep, priority, concurrency_limit,
            placed.state, queue, job, step, schedule, unique_key, concurrency_key,
            coalesce(redrive_runs.input, failed.input)
        from failed
        cross join lateral underway.place_run(now(), '0', priority, concurrency_key is not null) placed
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
    'lets failed runs go on at their last step, with counters at zero; how many. Runs that have not failed stay';
