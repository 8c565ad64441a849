create or replace function underway.release_quarantined(
    job text default null, max_runs int default null, failed_until timestamptz default null
) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    select underway.redrive_runs((
        select array_agg(id) from (
            select f.id from underway.finished_run f
            where f.quarantined and (release_quarantined.job is null or f.job = release_quarantined.job)
                and f.finished_at <= coalesce(release_quarantined.failed_until, 'infinity')
            order by f.finished_at
            limit max_runs
        ) oldest
    ))
$$;
comment on function underway.release_quarantined is
    'redrives quarantined runs, of one job or all, the oldest first; how many';
