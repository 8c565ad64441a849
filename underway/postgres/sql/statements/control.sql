-- pause_queue: let no more runs of this queue start
select underway.pause(%(queue)s) as changed;

-- resume_queue: undo pause_queue
select underway.resume(%(queue)s) as changed;

-- shut_down: ask a supervisor, or all of them, to stop
select id from underway.shutdown(%(supervisor)s) as id;

-- present_supervisors: which of these supervisors have not left and were seen in the last half minute
select id from underway.supervisor where id = any(%(ids)s::uuid[]) and seen_at >= now() - interval '30 seconds';

-- dead_letters: failed runs with this label, the oldest first; times as for clock
select id, job, step, queue, error, input::text, (extract(epoch from finished_at) * 1000000)::int8 as finished_at,
    attempts, crashes
from underway.finished_run
where dead_letter = %(label)s
order by finished_at
limit %(limit)s;

-- failed_step: the job and the step at which a run failed or was cancelled; no row for other runs
select job, step, state from underway.finished_run where id = %(id)s and state in ('failed', 'cancelled');

-- redrive_run: let a failed run go on at its last step, perhaps with another input
select underway.redrive_run(%(id)s, %(input)s::text::json) as redriven;

-- redrive_label: the same for runs with this dead-letter label, the oldest first
select underway.redrive_all(%(label)s, %(limit)s, %(failed_until)s) as redriven;

-- discard_run: remove the dead-letter label of a run
select underway.discard(%(id)s) as discarded;

-- discard_label: remove this label from all runs that have it
select underway.discard_all(%(label)s) as discarded;

-- known_labels: the dead-letter labels of runs and queues; one index probe per label, however many runs have it
with recursive label as (
    (select dead_letter from underway.finished_run where dead_letter is not null order by dead_letter limit 1)
    union all
    select (
        select f.dead_letter from underway.finished_run f
        where f.dead_letter > label.dead_letter order by f.dead_letter limit 1
    )
    from label
    where label.dead_letter is not null
)
select dead_letter from label where dead_letter is not null
union
select dead_letter from underway.queue where dead_letter is not null
order by dead_letter;

-- release_quarantined: let quarantined runs go on, the oldest first
select underway.release_quarantined(%(job)s, %(limit)s, %(failed_until)s) as released;

-- stranded_lanes: lanes with pending runs that no living supervisor serves, and since when; times as for clock
select queue, job, step, (extract(epoch from since) * 1000000)::int8 as since
from underway.stranded_lane
order by queue, job, step;
