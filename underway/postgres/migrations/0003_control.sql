-- What people may ask for at any time: cancel, pause and resume, redrive and discard, shut down; and what to look at.
-- oldest code: 1

-- Cancel: public contract, version 1.

-- Runs in progress are only marked. The mark shuts the fence, so from that commit on nothing of the attempt can be
-- written; its supervisor is woken, stops the step, and closes the run when nothing of it runs any more.
create function underway.cancel_runs(run_ids uuid[]) returns int
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    closed int;
    requested int;
    locked_keys text[];
begin
    -- Who claims, commits or takes back one of them at this moment comes first, and what is found then stays.
    perform from underway.run r where r.id = any(run_ids) order by r.id for update;
    with gone as (
        delete from underway.run r
        where r.id = any(run_ids) and r.state in ('pending', 'waiting')
        returning r.*
    ),
    filed as (
        insert into underway.finished_run (id, created_at, expires_at, scheduled_for, keep, attempts, crashes, releases,
            priority, key_limit, state, queue, job, step, unique_key, concurrency_key, error, input)
        select id, created_at, now() + keep, scheduled_for, keep, attempts, crashes, releases, priority, key_limit,
            'cancelled', queue, job, step, unique_key, concurrency_key, 'cancelled', input
        from gone
    )
    select count(*), (
        select underway.pass_keys(array_agg(queue), array_agg(concurrency_key)) from gone where holds_key
    ) into closed, locked_keys from gone;
    update underway.run r
    set cancel_requested = true
    where r.id = any(run_ids) and r.state = 'in_progress' and not r.cancel_requested;
    get diagnostics requested = row_count;
    if requested > 0 then
        perform pg_notify('underway', 'cancel');
    end if;
    return closed + requested;
end
$$;
comment on function underway.cancel_runs is 'cancels live runs; how many of them had not been cancelled before';

create function underway.cancel(run_id uuid) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$ select underway.cancel_runs(array[run_id]) = 1 $$;
comment on function underway.cancel is 'cancels a run; false if it was finished, cancelled before, or never there';

create function underway.cancel_all(job text) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    select underway.cancel_runs((select array_agg(r.id) from underway.run r where r.job = cancel_all.job))
$$;
comment on function underway.cancel_all is 'cancels all live runs of a job; how many';

create function underway.cancel_key(job text, unique_key text) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    select underway.cancel_runs((
        select array_agg(r.id) from underway.run r
        where r.job = cancel_key.job and r.unique_key = cancel_key.unique_key
    ))
$$;
comment on function underway.cancel_key is 'cancels the live run of a job that has this unique key, if there is one';

-- Not over the owner: whoever gives up a run or takes it would write into this index too.
create index run_cancel_requested on underway.run (id) where cancel_requested;

-- Last: a view can only be given more columns at its end.
create or replace view underway.runs as
select id, job, step, state, queue, priority, number as attempts_made, attempts, crashes, releases, created_at,
    nullif(due, 'infinity') as due, lease_until, owner, progress, input, null::json as result, null::text as error,
    null::timestamptz as finished_at, null::text as dead_letter, null::timestamptz as expires_at, cancel_requested
from underway.run
union all
select id, job, step, state, queue, priority, null, attempts, crashes, releases, created_at,
    null, null, null, null, input, result, error, finished_at, dead_letter, expires_at, null
from underway.finished_run;

-- Queues.

create index queue_paused on underway.queue (name) where paused;

create function underway.pause(queue text) returns boolean
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
comment on function underway.pause is 'lets no run of this queue begin; false if it was paused already';

create function underway.resume(queue text) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    with changed as (
        update underway.queue q set paused = false where q.name = resume.queue and q.paused returning q.name
    )
    select count(pg_notify('underway', name)) = 1 from changed
$$;
comment on function underway.resume is 'undoes underway.pause; false if it was not paused';

-- Dead letters: finished_run.dead_letter says which of the failed runs wait for somebody to look at them.

-- A run goes back under its own id, to the step that failed. Of several with one unique key only one can be live. One
-- that a concurrency key keeps in line waits like a new one.
create function underway.redrive_runs(run_ids uuid[], input json default null) returns int
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    redriven int;
    woken int;
begin
    with failed as (
        select f.id, f.unique_key is null
            or row_number() over (partition by f.job, f.unique_key order by f.finished_at, f.id) = 1 as first
        from underway.finished_run f
        where f.id = any(run_ids) and f.state in ('failed', 'cancelled')
            and not exists (select from underway.run r where r.job = f.job and r.unique_key = f.unique_key)
    ),
    gone as (
        delete from underway.finished_run f
        where f.id in (select id from failed where first)
        returning f.*
    ),
    back as (
        insert into underway.run (id, created_at, due, rank, scheduled_for, keep, priority, key_limit, state, queue,
            job, step, unique_key, concurrency_key, input)
        select id, created_at, now(), now() - priority * interval '1 minute', scheduled_for, keep, priority, key_limit,
            case when concurrency_key is null then 'pending' else 'waiting' end, queue, job, step, unique_key,
            concurrency_key, coalesce(redrive_runs.input, gone.input)
        from gone
        returning queue
    )
    select count(*),
        case when exists (select from underway.supervisor s where s.idle)
            then (select count(pg_notify('underway', queue)) from (select distinct queue from back) queues) end
    into redriven, woken
    from back;
    return redriven;
end
$$;
comment on function underway.redrive_runs is 'lets failed or cancelled runs go on at their last step, counters at zero; how many';

create function underway.redrive(run_id uuid, input jsonb default null) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$ select underway.redrive_runs(array[run_id], underway.payload(input)) = 1 $$;
comment on function underway.redrive is 'redrives one run that has failed or was cancelled, if no other is live under its unique key';

create function underway.redrive_all(dead_letter text, most int default null, failed_until timestamptz default 'infinity')
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

create function underway.discard(run_id uuid) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    with discarded as (
        update underway.finished_run f set dead_letter = null
        where f.id = run_id and f.dead_letter is not null
        returning 1
    )
    select exists (select from discarded)
$$;
comment on function underway.discard is 'takes the label off a run, which stays readable as failed; false without one';

create function underway.discard_all(dead_letter text) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    with discarded as (
        update underway.finished_run f set dead_letter = null
        where f.dead_letter = discard_all.dead_letter
        returning 1
    )
    select count(*)::int from discarded
$$;
comment on function underway.discard_all is 'discards all runs with this label; how many';

-- Supervisors.

alter table underway.supervisor add column lanes jsonb;
comment on column underway.supervisor.lanes is 'what it serves: [{queue, job, step}]; null for code that does not say';

-- A table of its own: the label of a supervisor must not be locked by whoever asks it to stop.
create unlogged table underway.stop_request (supervisor uuid primary key);

create function underway.shutdown(supervisor uuid default null) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_notify('underway', 'shutdown');
    insert into underway.stop_request (supervisor)
    select s.id from underway.supervisor s
    where shutdown.supervisor is null or s.id = shutdown.supervisor
    on conflict do nothing;
    return query select s.id from underway.supervisor s
    where shutdown.supervisor is null or s.id = shutdown.supervisor;
end
$$;
comment on function underway.shutdown is 'asks one supervisor, or all, to stop as TERM does; who was asked';

-- One probe of the index for each lane, not a look at every run.
create view underway.stranded_lane as
with recursive fresh as (
    (select queue, job, step, due from underway.run
        where state = 'pending' and crashes = 0 order by queue, job, step, rank, id limit 1)
    union all
    select following.* from fresh l cross join lateral (
        select r.queue, r.job, r.step, r.due from underway.run r
        where r.state = 'pending' and r.crashes = 0 and (r.queue, r.job, r.step) > (l.queue, l.job, l.step)
        order by r.queue, r.job, r.step, r.rank, r.id limit 1
    ) following
),
suspect as (
    (select queue, job, step, due from underway.run
        where state = 'pending' and crashes > 0 order by queue, job, step, rank, id limit 1)
    union all
    select following.* from suspect l cross join lateral (
        select r.queue, r.job, r.step, r.due from underway.run r
        where r.state = 'pending' and r.crashes > 0 and (r.queue, r.job, r.step) > (l.queue, l.job, l.step)
        order by r.queue, r.job, r.step, r.rank, r.id limit 1
    ) following
)
-- Cast to text, because drivers do not know arrays of our domain types.
select queue::text as queue, job::text as job, step::text as step, min(due)::timestamptz as since
from (select * from fresh union all select * from suspect) lane
where not exists (
    select from underway.supervisor s
    where s.seen_at > now() - interval '30 seconds'
        and (s.lanes is null
            or s.lanes @> jsonb_build_array(jsonb_build_object('queue', queue, 'job', job, 'step', step)))
)
group by queue, job, step;
comment on view underway.stranded_lane is 'lanes in which runs are pending that no living supervisor serves';

create view underway.stranded as
select r.id, l.queue, l.job, l.step, r.due::timestamptz as due, r.priority, r.created_at::timestamptz as created_at
from underway.run r
join underway.stranded_lane l using (queue, job, step)
where r.state = 'pending';
comment on view underway.stranded is 'the runs in stranded lanes';
