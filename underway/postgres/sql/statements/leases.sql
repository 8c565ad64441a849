-- renew_leases: extend the leases of these tasks and store their progress; fenced, and never waits for a row lock
update underway.run r
set lease_until = clock_timestamp() + make_interval(secs => g.lease),
    progress = coalesce(g.progress::json, r.progress)
from unnest(%(ids)s::uuid[], %(tokens)s::int8[], %(leases)s::float8[], %(progress)s::text[])
    as g (id, token, lease, progress)
where r.id = any(array(
        select l.id from underway.run l
        where l.id = any(%(ids)s::uuid[]) order by l.id for no key update skip locked
    ))
    and r.id = g.id and r.token = g.token and r.owner = %(owner)s
    and r.state = 'in_progress' and not r.cancel_requested
returning r.id::text;

-- rehearse_renewal: write as a renewal does, but to no run, and say when: it fails when nobody can renew
with renewed as (
    update underway.run set lease_until = lease_until where false
)
select date_part('epoch', statement_timestamp());

-- reap_runs: take back runs whose lease has expired; the crash that comes with it may be their last
--
-- But never the first: a supervisor that is killed loses hundreds of runs at once, most of which it had not begun. That
-- makes them suspects, who are held one at a time, so that only the culprit is lost again.
-- One that somebody has cancelled is closed: whoever had to stop it is gone.
-- What has expired since an instant that is given is left for the next look.
with lapsed as materialized (
    select id, token, owner, least(crashes, 1999999999) + 1 as crashes, least(number, 1999999999) + 1 as number,
        case when cancel_requested then 'cancelled' when crashes > 0 and crashes >= max_crashes - 1 then 'failed'
            end as final
    from underway.run
    where state = 'in_progress' and lease_until < coalesce(to_timestamp(%(expired_by)s::float8), now())
    order by id
    offset %(passing_over)s
    limit %(limit)s
    for update skip locked
),
back as (
    update underway.run r
    set state = 'waiting',
        crashes = l.crashes,
        number = l.number,
        due = now() + make_interval(secs => least(60, 2 ^ least(l.crashes - 1, 6))),
        rank = now() + make_interval(secs => least(60, 2 ^ least(l.crashes - 1, 6))) - r.priority * interval '1 minute',
        owner = null,
        lease_until = null,
        progress = null
    from lapsed l
    where r.id = any(array(select id from lapsed)) and r.id = l.id and r.token = l.token and l.final is null
    returning r.id, r.token, r.number, r.step, l.owner
),
gone as (
    delete from underway.run r
    using lapsed l
    where r.id = any(array(select id from lapsed)) and r.id = l.id and r.token = l.token and l.final is not null
    returning r.*, l.final, case l.final when 'failed' then l.crashes else r.crashes end as all_crashes,
        l.owner as last_owner, l.number as last_number
),
filed as (
    insert into underway.finished_run (id, created_at, expires_at, scheduled_for, keep, attempts, crashes, releases,
        priority, key_limit, quarantined, state, queue, job, step, schedule, unique_key, concurrency_key, dead_letter,
        error, input)
    select id, created_at, now() + keep, scheduled_for, keep, attempts, all_crashes, releases, priority, key_limit,
        final = 'failed', final, queue, job, step, schedule, unique_key, concurrency_key,
        case final when 'failed' then (select q.dead_letter from underway.queue q where q.name = gone.queue) end,
        case final when 'cancelled' then 'cancelled; its lease expired, its supervisor is gone'
            else format('quarantined after %%s crashes: the lease expired, its supervisor is gone', all_crashes) end,
        input
    from gone
    on conflict (id) do nothing
),
noted as (
    insert into underway.attempt (run_id, token, number, pid, finished_at, step, outcome, host, error)
    select t.id, t.token, t.number, s.pid, now(), t.step, t.outcome, s.host,
        format('the lease expired: supervisor %%s did not renew it', t.owner)
    from (
        select id, token, number, step, owner, 'lost' as outcome from back
        union all
        select id, token, last_number, step, last_owner, case final when 'cancelled' then final else 'lost' end from gone
    ) t
    left join underway.supervisor s on s.id = t.owner
)
select id::text, token, null as final, null::text[] as locked_keys from back
union all
select id::text, token, final,
    (select underway.pass_keys(array_agg(queue), array_agg(concurrency_key)) from gone where holds_key)
from gone;

-- claimed_runs: which runs are this supervisor's, under which tokens, but for those that somebody has cancelled
select id::text, token
from underway.run
where state = 'in_progress' and owner = %(owner)s and not cancel_requested;

-- release_unknown: give back runs that are ours by their row but not by our memory: claims whose answer was lost
--
-- By their tokens: it may take effect late, in a backend that has not noticed yet that we are gone. When it named those
-- that are known instead, it then gave back what had been claimed meanwhile, and steps ran twice at a time.
update underway.run r
set state = 'pending', owner = null, lease_until = null, releases = least(r.releases, 1999999999) + 1
from unnest(%(ids)s::uuid[], %(tokens)s::int8[]) as g (id, token)
where r.id = any(array(
        select l.id from underway.run l where l.id = any(%(ids)s::uuid[]) order by l.id for no key update skip locked
    ))
    and r.id = g.id and r.token = g.token and r.owner = %(owner)s
    and r.state = 'in_progress' and not r.cancel_requested;

-- cancel_requests: which of this supervisor's runs somebody has cancelled
select id::text, token, attempts, crashes
from underway.run
where cancel_requested and owner = %(owner)s;

-- paused_queues: the queues in which no run may start
select name from underway.queue where paused;

-- listen: hear of new runs
listen underway;

-- notify_self: does a notification come back on this connection
select pg_notify('underway', %(nonce)s);
