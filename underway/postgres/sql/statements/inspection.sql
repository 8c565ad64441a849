-- list_runs: the newest runs, live and finished, that fit; each row a JSON object
--
-- Newest by id, because the primary keys have that order: ids begin with the time. So a list costs what it shows,
-- however many finished runs there are. Runs that failed or were cancelled have an index of their own, because there
-- may be three of them among ten million. A search among the finished runs looks at the newest only: %(finished)s of
-- all, or %(unsuccessful)s of those in one such state.
with live as (
    select id, job, step, state, queue, priority, created_at, due_at,
        null::timestamptz as finished_at, attempts, crashes, releases, cancel_requested, progress, unique_key,
        concurrency_key, null as dead_letter, null as error
    from underway.run
    where (%(state)s::text is null or state = %(state)s)
        and (%(job)s::text is null or job = %(job)s)
        and (%(queue)s::text is null or queue = %(queue)s)
        and (not %(stranded)s or state = 'pending'
            and (queue, job, step) in (select queue, job, step from underway.stranded_lane))
    order by id desc
    limit least(%(live)s, %(limit)s)
),
finished as (
    select id, job, step, state, queue, priority, created_at, null::timestamptz as due_at, finished_at, attempts,
        crashes, releases, false as cancel_requested, null::json as progress, unique_key, concurrency_key, dead_letter,
        error
    from (
        (select * from underway.finished_run order by id desc limit %(finished)s)
        union all
        (select * from underway.finished_run where state <> 'succeeded' and state = %(state)s::text
            order by id desc limit %(unsuccessful)s)
    ) newest
    where (%(state)s::text is null or state = %(state)s)
        and (%(job)s::text is null or job = %(job)s)
        and (%(queue)s::text is null or queue = %(queue)s)
    order by id desc
    limit %(limit)s
)
select row_to_json(newest)
from (select * from live union all select * from finished order by created_at desc, id desc limit %(limit)s) newest;

-- more_finished_than: whether there are more finished runs than a search looks at
select exists (select from underway.finished_run order by id desc offset %(finished)s limit 1) as more;

-- more_unsuccessful_than: the same for runs that failed or were cancelled
select exists (
    select from underway.finished_run where state <> 'succeeded' and state = %(state)s::text
    order by id desc offset %(finished)s limit 1
) as more;

-- run_details: everything about one run
select row_to_json(run)
from (
    select r.id, r.job, r.step, r.state, r.queue, r.priority, r.created_at, r.due_at,
        r.scheduled_at, null::timestamptz as finished_at, null::timestamptz as expires_at, r.lease_expires_at, r.owner,
        s.host, s.pid, r.attempts, r.crashes, r.releases, r.cancel_requested, r.progress, r.unique_key,
        r.concurrency_key, r.concurrency_limit, null as dead_letter, false as quarantined, null as error, r.input,
        null::json as result
    from underway.run r
    left join underway.supervisor s on s.id = r.owner
    where r.id = %(id)s
    union all
    select id, job, step, state, queue, priority, created_at, null, scheduled_at, finished_at, expires_at, null, null,
        null, null, attempts, crashes, releases, false, null, unique_key, concurrency_key, concurrency_limit,
        dead_letter, quarantined, error, input, result
    from underway.finished_run
    where id = %(id)s
) run;

-- stored_attempt: what the next attempt of a live run is given, or the last one of a finished run was
select job, queue, step, state, input::text, attempt_number, extract(epoch from scheduled_at)::float8 as scheduled_at
from underway.run
where id = %(id)s
union all
select job, queue, step, state, input::text,
    coalesce((select attempt_number - 1 from underway.attempt where run_id = %(id)s order by token desc limit 1), 0),
    extract(epoch from scheduled_at)::float8
from underway.finished_run
where id = %(id)s;

-- runs_between: runs with ids in this range
select id, state, job
from (
    (select id, state, job from underway.run where id between %(lowest)s and %(highest)s order by id limit %(limit)s)
    union all
    (select id, state, job from underway.finished_run where id between %(lowest)s and %(highest)s order by id
        limit %(limit)s)
) found
order by id
limit %(limit)s;

-- list_queues: every queue that is declared, that a job uses, or that has runs
--
-- `late_since` is when the pending run that has waited longest was due.
select row_to_json(line)
from (
    select name as queue, coalesce(q.paused, false) as paused, coalesce(r.pending, 0) as pending,
        coalesce(r.waiting, 0) as waiting, coalesce(r.in_progress, 0) as in_progress, r.late_since, q.dead_letter
    from (select name from underway.queue union select queue from underway.job union select queue from underway.run)
        known
    left join underway.queue q using (name)
    left join (
        select queue as name, count(*) filter (where state = 'pending') as pending,
            count(*) filter (where state = 'waiting') as waiting,
            count(*) filter (where state = 'in_progress') as in_progress,
            min(due_at) filter (where state = 'pending') as late_since
        from underway.run
        group by queue
    ) r using (name)
    order by name
) line;

-- knows_queue: whether a job, an app, a supervisor or a run uses this queue; a pause is not a use
select exists (select from underway.job where queue = %(queue)s)
    or exists (select from underway.queue where name = %(queue)s and (not paused or dead_letter is not null))
    or exists (
        select from underway.supervisor
        where lanes @> jsonb_build_array(jsonb_build_object('queue', %(queue)s::text))
    )
    or exists (select from underway.run where queue = %(queue)s) as known;

-- registered_jobs: the names of the jobs that a supervisor or underway sync has registered
select name from underway.job;

-- list_supervisors: who serves this database, and how many runs each holds
--
-- A supervisor writes `seen_at` every 5 s. Silent: it was killed, or cannot reach the database. Unhealthy: its workers
-- do not boot. (A killed supervisor was shown as busy for three minutes.)
select row_to_json(line)
from (
    select s.id, s.host, s.pid, s.app, s.started_at, s.seen_at, count(r.id) as in_progress,
        case when s.seen_at < now() - interval '30 seconds' then 'silent' when s.trouble is not null then 'unhealthy'
            when count(r.id) > 0 then 'busy' else 'idle' end as state,
        s.trouble
    from underway.supervisor s
    left join underway.run r on r.owner = s.id and r.state = 'in_progress'
    group by s.id
    order by s.started_at, s.id
) line;

-- supervisors_between: supervisors with ids in this range
select id, host || ':' || pid as place, app
from underway.supervisor
where id between %(lowest)s and %(highest)s
order by id
limit %(limit)s;

-- dead_letter_labels: every dead-letter label, and how many runs have it
select row_to_json(line)
from (
    select dead_letter as label, count(*) as runs, min(finished_at) as oldest, max(finished_at) as newest
    from underway.finished_run
    where dead_letter is not null
    group by dead_letter
    order by dead_letter
) line;

-- list_quarantine: quarantined runs, of one job or all, the newest first
select row_to_json(newest)
from (
    select * from underway.quarantine
    where %(job)s::text is null or job = %(job)s
    order by finished_at desc
    limit %(limit)s
) newest;
