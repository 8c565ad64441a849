-- Lets code of migration 1 run beside newer code while that is rolled out, and do no harm.
-- oldest code: 1

-- The view before its tables: see 0002.
lock table underway.runs in access exclusive mode;

-- Such code knows neither keys nor the cancelling of what runs. Its promoter let in every run that stood in line for a
-- key, however many were at work under it, and its reaper put cancelled runs back in line, to be run again. Where it
-- may still be about, a trigger keeps these rows from it: its statements skip rows that somebody has locked, and pass by
-- these in the same way. Newer code never tries; it pays a microsecond for each claim, until a migration that has no
-- room for such code drops the trigger. A database that is new has nobody to spare, and says so.
create function underway.spare_run() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$ begin return null; end $$;
comment on function underway.spare_run is 'leaves a run as it is; see the trigger run_spared, if there is one';

do $$
begin
    if exists (select from underway.migration where applied_at < now()) then
        create trigger run_spared before update of state on underway.run
        for each row when (
            (new.state = 'pending' and new.concurrency_key is not null and not new.holds_key)
            or (old.cancel_requested and new.state <> 'in_progress')
        )
        execute function underway.spare_run();
    else
        update underway.migration set oldest_code = 2 where version = 2;
    end if;
end
$$;

-- Never, in the column due, is the last day of the year 9999 and no longer infinity: up to PostgreSQL 16 that cannot be
-- subtracted from, and such code, which asks how long it is until the next run is due, ended with an error.
update underway.run set due = '9999-12-31 00:00+00' where due = 'infinity';

create or replace view underway.runs as
select id, job, step, state, queue, priority, number as attempts_made, attempts, crashes, releases, created_at,
    nullif(due, '9999-12-31 00:00+00') as due, lease_until, owner, progress, input, null::json as result,
    null::text as error, null::timestamptz as finished_at, null::text as dead_letter, null::timestamptz as expires_at,
    cancel_requested
from underway.run
union all
select id, job, step, state, queue, priority, null, attempts, crashes, releases, created_at,
    null, null, null, null, input, result, error, finished_at, dead_letter, expires_at, null
from underway.finished_run;
