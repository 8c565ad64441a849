create or replace function underway.cancel_all(job text) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    select underway.cancel_runs((select array_agg(r.id) from underway.run r where r.job = cancel_all.job))
$$;
comment on function underway.cancel_all is 'cancels all live runs of a job; how many';
