-- claim_tasks: take pending runs of these lanes in the order of their rank, and at most so many suspects
--
-- Each lane is probed by its index from its mark on, then the candidates are locked; "ctid = any(array(...))" keeps the
-- plan the same on an empty table and beside millions of rows. Lanes of queues that are paused are left out.
with lane as (
    select queue, job, step, lease, max_crashes, to_timestamp(mark) as mark, mark_id, n
    from unnest(
        %(queues)s::text[], %(jobs)s::text[], %(steps)s::text[], %(leases)s::float8[], %(max_crashes)s::int[],
        %(marks)s::float8[], %(mark_ids)s::uuid[]
    ) with ordinality as lane (queue, job, step, lease, max_crashes, mark, mark_id, n)
    where queue <> all(array(select name from underway.queue where paused))
),
claimed as (
    update underway.run r
    set state = 'in_progress',
        token = nextval('underway.token'),
        owner = %(owner)s,
        lease_until = clock_timestamp() + make_interval(secs => lane.lease),
        max_crashes = lane.max_crashes
    from lane
    where r.ctid = any(array(
            select c.ctid
            from underway.run c
            where c.state = 'pending'
                and c.ctid = any(
                    array(
                        select candidate.ctid
                        from lane cross join lateral (
                            select p.ctid, p.id, p.rank from underway.run p
                            where p.queue = lane.queue and p.job = lane.job and p.step = lane.step
                                and p.state = 'pending' and p.crashes = 0
                                and (p.rank, p.id) > (lane.mark, lane.mark_id)
                            order by p.rank, p.id
                            limit %(candidates)s
                        ) candidate
                        order by candidate.rank, candidate.id
                        limit %(candidates)s
                    )
                    || array(
                        select suspect.ctid
                        from lane cross join lateral (
                            select p.ctid, p.id, p.rank from underway.run p
                            where p.queue = lane.queue and p.job = lane.job and p.step = lane.step
                                and p.state = 'pending' and p.crashes > 0
                            order by p.rank, p.id
                            limit %(suspects)s
                        ) suspect
                        order by suspect.rank, suspect.id
                        limit %(suspects)s
                    )
                )
            order by c.rank, c.id
            limit %(tasks)s
            for update skip locked
        ))
        and r.queue = lane.queue and r.job = lane.job and r.step = lane.step
    returning r.id, r.token, lane.n, r.number, r.attempts, r.crashes, r.releases, r.rank, r.input
)
select id::text, token, n, number, attempts, crashes, releases, date_part('epoch', rank), input::text
from claimed
order by rank, claimed.id;

-- promote_runs: make waiting runs pending whose time has come
update underway.run r
set state = 'pending'
where r.ctid = any(array(
    select w.ctid
    from underway.run w
    where w.state = 'waiting' and w.due <= now()
    order by w.due, w.id
    limit %(limit)s
    for no key update skip locked
))
returning r.queue;

-- seconds_until_due: how long until the next waiting run is due; null when none waits
select extract(epoch from min(due) - clock_timestamp())::float8 as seconds
from underway.run
where state = 'waiting';

-- has_work: is a run of these jobs pending, in progress, or waiting for a retry
select exists (
    select from underway.run
    where job = any(%(jobs)s)
        and (state in ('pending', 'in_progress') or attempts > 0 or crashes > 0)
) as has_work;
