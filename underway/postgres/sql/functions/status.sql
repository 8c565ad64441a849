create or replace function underway.status(run_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select r.state from underway.run r where r.id = status.run_id
    union all
    select f.state from underway.finished_run f where f.id = status.run_id
    limit 1
$$;
comment on function underway.status is 'the state of a run; null if there is no run with this id';

-- As for underway.enqueue.
revoke execute on function underway.status from public;
