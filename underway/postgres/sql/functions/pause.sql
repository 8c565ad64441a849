create or replace function underway.pause(queue text) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    with changed as (
        insert into underway.queue as q (name, paused) values (pause.queue, true)
        on conflict (name) do update set paused = true where not q.paused
        returning q.name
    )
    select count(pg_notify('underway', 'pause')) = 1 from changed
$$;
comment on function underway.pause is 'lets no more runs of this queue start; false if the queue was paused already';
