create or replace function underway.cancel_key(job text, unique_key text) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    select underway.cancel_runs((
        select array_agg(r.id) from underway.run r
        where r.job = cancel_key.job and r.unique_key = cancel_key.unique_key
    ))
$$;
comment on function underway.cancel_key is 'cancels the live run of a job that has this unique key, if there is one';
