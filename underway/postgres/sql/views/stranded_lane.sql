-- One probe of the index for each lane, instead of a scan of all runs.
create or replace view underway.stranded_lane as
with recursive fresh as (
    (select queue, job, step, due_at from underway.run
        where state = 'pending' and crashes = 0 order by queue, job, step, rank, id limit 1)
    union all
    select following.* from fresh l cross join lateral (
        select r.queue, r.job, r.step, r.due_at from underway.run r
        where r.state = 'pending' and r.crashes = 0 and (r.queue, r.job, r.step) > (l.queue, l.job, l.step)
        order by r.queue, r.job, r.step, r.rank, r.id limit 1
    ) following
),
suspect as (
    (select queue, job, step, due_at from underway.run
        where state = 'pending' and crashes > 0 order by queue, job, step, rank, id limit 1)
    union all
    select following.* from suspect l cross join lateral (
        select r.queue, r.job, r.step, r.due_at from underway.run r
        where r.state = 'pending' and r.crashes > 0 and (r.queue, r.job, r.step) > (l.queue, l.job, l.step)
        order by r.queue, r.job, r.step, r.rank, r.id limit 1
    ) following
)
-- Cast to text, because drivers do not know arrays of our domain types.
select queue::text as queue, job::text as job, step::text as step, min(due_at)::timestamptz as since
from (select * from fresh union all select * from suspect) lane
where not exists (
    select from underway.supervisor s
    where s.seen_at > now() - interval '30 seconds'
        and s.lanes @> jsonb_build_array(jsonb_build_object('queue', queue, 'job', job, 'step', step))
)
group by queue, job, step;
comment on view underway.stranded_lane is 'lanes with pending runs that no living supervisor serves';
