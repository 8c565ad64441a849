create or replace function underway.redrive_all(
    dead_letter text, max_runs int default null, failed_until timestamptz default null
) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    select underway.redrive_runs((
        select array_agg(id) from (
            select f.id from underway.finished_run f
            where f.dead_letter = redrive_all.dead_letter
                and f.finished_at <= coalesce(redrive_all.failed_until, 'infinity')
            order by f.finished_at
            limit max_runs
        ) oldest
    ))
$$;
comment on function underway.redrive_all is 'redrives the runs with this label, the oldest first; how many';
