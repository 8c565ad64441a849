create or replace view underway.stranded as
select r.id, l.queue, l.job, l.step, r.due_at::timestamptz as due_at, r.priority,
    r.created_at::timestamptz as created_at
from underway.run r
join underway.stranded_lane l using (queue, job, step)
where r.state = 'pending';
comment on view underway.stranded is 'the runs in stranded lanes';
