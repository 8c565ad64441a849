-- A function, so that its plan is kept in the session. Planned at each call, the statement took half a millisecond of
-- the one and a half that a client waits for.
create or replace function underway.insert_run(
    id uuid, job text, step text, queue text, priority smallint, keep interval, delay float8, input text
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    enqueued_at timestamptz := clock_timestamp();
begin
    insert into underway.run (id, job, step, queue, priority, keep, due_at, rank, state, input)
    select insert_run.id, job, step, queue, priority, keep, placed.due_at, placed.rank, placed.state, input::json
    from underway.place_run(enqueued_at, make_interval(secs => delay), priority, false) placed;
    perform underway.wake(queue);
end
$$;
comment on function underway.insert_run is
    'used by the Python client, for a run without keys; others call underway.enqueue';
