create or replace function underway.redrive_all(dead_letter text, most int default null, failed_until timestamptz default 'infinity')
returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    select underway.redrive_runs((
        select array_agg(id) from (
            select f.id from underway.finished_run f
            where f.dead_letter = redrive_all.dead_letter and f.finished_at <= redrive_all.failed_until
            order by f.finished_at
            limit most
        ) oldest
    ))
$$;
comment on function underway.redrive_all is 'redrives the runs with this label, the oldest first; how many';
