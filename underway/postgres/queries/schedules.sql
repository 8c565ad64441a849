-- put_schedule: create or change a schedule
--
-- With the same line and zone it goes on waiting for the slot that it waited for: a deployment says it all again, and
-- would lose the slot that came due while nobody was there.
insert into underway.schedule as s (job, name, cron, zone, catch_up, overlap, input, next_at)
values (%(job)s, %(name)s, %(cron)s, %(zone)s, %(catch_up)s, %(overlap)s, %(input)s::text::jsonb,
    timestamptz 'epoch' + %(next_at)s::int8 * interval '1 microsecond')
on conflict (job, name) do update
set cron = excluded.cron, zone = excluded.zone, catch_up = excluded.catch_up, overlap = excluded.overlap,
    input = excluded.input,
    next_at = case when (s.cron, s.zone) = (excluded.cron, excluded.zone) then s.next_at else excluded.next_at end
returning (extract(epoch from next_at) * 1000000)::int8 as next_at;

-- drop_schedule: no further runs
delete from underway.schedule where job = %(job)s and name = %(name)s returning name;

-- all_schedules: every schedule there is
select job, name, cron, zone, catch_up, overlap, input::text, (extract(epoch from next_at) * 1000000)::int8 as next_at
from underway.schedule
order by job, name;

-- upcoming_schedules: schedules of these jobs that are due, or will be within so many seconds; the earliest first
select job, name, cron, zone, catch_up, (extract(epoch from next_at) * 1000000)::int8 as next_at,
    (extract(epoch from now()) * 1000000)::int8 as now
from underway.schedule
where next_at <= now() + make_interval(secs => %(within)s) and job = any(%(jobs)s::text[])
order by next_at
limit %(limit)s;

-- fire_schedule: enqueue the runs of these slots and store the slot to wait for next, if the schedule is as it was read
--
-- The row lock and next_at decide between supervisors: whoever comes second finds the row locked, or waiting for another
-- slot. Without overlap no run is enqueued while one of this schedule is live.
with due as (
    select job, name, input,
        overlap or not exists (
            select from underway.run r where r.job = %(job)s and r.schedule = %(name)s and r.schedule is not null
        ) as free
    from underway.schedule
    where job = %(job)s and name = %(name)s and cron = %(cron)s and zone = %(zone)s and catch_up = %(catch_up)s
        and next_at = timestamptz 'epoch' + %(next_at)s::int8 * interval '1 microsecond'
    for update skip locked
),
moved as (
    update underway.schedule s
    set next_at = timestamptz 'epoch' + %(following)s::int8 * interval '1 microsecond'
    from due
    where s.job = due.job and s.name = due.name
    returning due.free
),
enqueued as (
    insert into underway.run (id, job, step, queue, priority, keep, due, rank, state, scheduled_for, schedule, input)
    select slot.id, due.job, %(step)s, %(queue)s, %(priority)s::int2, make_interval(secs => %(keep)s),
        now() + make_interval(secs => %(delay)s::float8),
        now() + make_interval(secs => %(delay)s::float8) - %(priority)s::int2 * interval '1 minute',
        case when %(delay)s::float8 > 0 then 'waiting' else 'pending' end,
        timestamptz 'epoch' + slot.at * interval '1 microsecond', due.name, due.input
    from due cross join unnest(%(ids)s::uuid[], %(slots)s::int8[]) as slot (id, at)
    where due.free
    returning queue
)
select free,
    case when exists (select from enqueued) and exists (select from underway.supervisor where idle)
        then (select count(pg_notify('underway', queue)) from (select distinct queue from enqueued) woken) end as woken
from moved;
