create or replace function underway.cancel_concurrency_key(job text, concurrency_key text) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    select underway.cancel_runs((
        select array_agg(r.id) from underway.run r
        where r.job = cancel_concurrency_key.job and r.concurrency_key = cancel_concurrency_key.concurrency_key
    ))
$$;
comment on function underway.cancel_concurrency_key is
    'cancels the live runs of a job that have this concurrency key; how many';
