create or replace function underway.resume(queue text) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    with changed as (
        update underway.queue q set paused = false where q.name = resume.queue and q.paused returning q.name
    )
    select count(pg_notify('underway', name)) = 1 from changed
$$;
comment on function underway.resume is 'undoes underway.pause; false if the queue was not paused';
