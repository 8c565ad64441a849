-- put_schedule: create or change a schedule
--
-- With the same line and zone it goes on waiting for the same slot: a deployment declares its schedules again, and
-- would lose a slot that came due while no supervisor was running.
insert into underway.schedule as s (job, name, cron, zone, catch_up, overlap, input, next_at)
values (%(job)s, %(name)s, %(cron)s, %(zone)s, %(catch_up)s, %(overlap)s, %(input)s::text::json,
    timestamptz 'epoch' + %(next_at)s::int8 * interval '1 microsecond')
on conflict (job, name) do update
set cron = excluded.cron, zone = excluded.zone, catch_up = excluded.catch_up, overlap = excluded.overlap,
    input = excluded.input,
    next_at = case when (s.cron, s.zone) = (excluded.cron, excluded.zone) then s.next_at else excluded.next_at end
returning (extract(epoch from next_at) * 1000000)::int8 as next_at;

-- drop_schedule: remove a schedule
delete from underway.schedule where job = %(job)s and name = %(name)s returning name;

-- all_schedules: every schedule
select job, name, cron, zone, catch_up, overlap, input::text, (extract(epoch from next_at) * 1000000)::int8 as next_at
from underway.schedule
order by job, name;

-- upcoming_schedules: schedules of these jobs that are due, or will be within the given seconds; the earliest first
select job, name, cron, zone, catch_up, (extract(epoch from next_at) * 1000000)::int8 as next_at,
    (extract(epoch from now()) * 1000000)::int8 as now
from underway.schedule
where next_at <= now() + make_interval(secs => %(within)s) and job = any(%(jobs)s::text[])
order by next_at
limit %(limit)s;

-- fire_schedule: enqueue the runs of these slots and store the slot to wait for next, if the schedule is as it was read
--
-- The row lock and next_at decide between supervisors: the second one finds the row locked, or waiting for another
-- slot. Without overlap no run is enqueued while a run of this schedule is live. While it is undecided whether a run
-- with the unique key is live, the schedule goes on waiting for its slot.
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
fired as materialized (
    select job, name,
        case when not free then 0 else underway.enqueue_slots(%(ids)s::uuid[],
            array(
                select timestamptz 'epoch' + slot * interval '1 microsecond'
                from unnest(%(slots)s::int8[]) with ordinality as given (slot, n) order by n
            ),
            name, job, %(step)s, %(queue)s, %(priority)s::int2, make_interval(secs => %(keep)s),
            make_interval(secs => %(delay)s), %(unique_key)s, %(concurrency_key)s, %(concurrency_limit)s::int2,
            input) end as enqueued
    from due
),
moved as (
    update underway.schedule s
    set next_at = timestamptz 'epoch' + %(following)s::int8 * interval '1 microsecond'
    from fired
    where s.job = fired.job and s.name = fired.name and fired.enqueued is not null
    returning fired.enqueued
)
select enqueued, case when enqueued > 0 then underway.wake(%(queue)s) end as woken
from moved;
