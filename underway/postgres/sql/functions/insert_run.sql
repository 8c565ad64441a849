create or replace function underway.insert_run(
    id uuid, job text, step text, queue text, priority smallint, keep interval, delay float8, input text
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    due timestamptz := clock_timestamp() + make_interval(secs => delay);
begin
    insert into underway.run (id, job, step, queue, priority, keep, due, rank, state, input)
    values (id, job, step, queue, priority, keep, due, due - priority * interval '1 minute',
        case when delay > 0 then 'waiting' else 'pending' end, input::json);
    perform underway.wake(queue);
end
$$;
comment on function underway.insert_run is 'what clients of this package call; others call underway.enqueue';
