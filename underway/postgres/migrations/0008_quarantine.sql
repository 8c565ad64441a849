-- Quarantine: runs that failed because the process died under them too often.
-- oldest code: 1

-- Older code that still runs puts nobody here; what it fails meanwhile is found among the failed runs.
alter table underway.finished_run add column quarantined boolean not null default false;
comment on column underway.finished_run.quarantined is 'failed by the death of its process, max_crashes times';

-- What failed before says so in its error only.
update underway.finished_run set quarantined = true where state = 'failed' and error like 'quarantined after %';

-- Beside millions of finished runs it takes seconds, in which nothing can end.
create index finished_run_quarantined on underway.finished_run (finished_at) where quarantined;

create view underway.quarantine as
select f.id, f.job, f.step, f.queue, f.crashes, f.finished_at, a.outcome, a.peak_rss, a.host, a.pid, f.error, f.input
from underway.finished_run f
left join lateral (
    select * from underway.attempt where run_id = f.id order by token desc limit 1
) a on true
where f.quarantined;
comment on view underway.quarantine is 'quarantined runs, with what is known of the last death';

create function underway.release_quarantined(
    job text default null, most int default null, failed_until timestamptz default 'infinity'
)
returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    select underway.redrive_runs((
        select array_agg(id) from (
            select f.id from underway.finished_run f
            where f.quarantined and (release_quarantined.job is null or f.job = release_quarantined.job)
                and f.finished_at <= release_quarantined.failed_until
            order by f.finished_at
            limit most
        ) oldest
    ))
$$;
comment on function underway.release_quarantined is 'redrives quarantined runs, of one job or all, the oldest first; how many';
