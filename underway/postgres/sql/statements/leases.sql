-- renew_leases: extend the leases of these tasks and store their progress; fenced, and never waits for a row lock
update underway.run r
set lease_expires_at = clock_timestamp() + make_interval(secs => g.lease),
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

-- rehearse_renewal: write as a renewal does, but to no run, and return the time; fails when renewals would fail
with renewed as (
    update underway.run set lease_expires_at = lease_expires_at where false
)
select date_part('epoch', statement_timestamp());

-- reap_runs: take back runs whose lease has expired; the crash that is counted for it may be their last
--
-- The first crash is never the last: a supervisor that is killed loses hundreds of runs at once, and had not started
-- most of them. They become suspects, which are held one at a time, so that only the culprit is lost again.
--
-- A cancelled run is closed, because the supervisor that had to stop it is gone. Leases that have expired since the
-- given instant are left for the next turn.
with expired as materialized (
    select id, token, owner, priority, least(crashes, 1999999999) + 1 as crashes,
        least(attempt_number, 1999999999) + 1 as attempt_number,
        case when cancel_requested then 'cancelled' when crashes > 0 and crashes >= max_crashes - 1 then 'failed'
            end as final
    from underway.run
    where state = 'in_progress' and lease_expires_at < coalesce(to_timestamp(%(expired_by)s::float8), now())
    order by id
    offset %(passing_over)s
    limit %(limit)s
    for update skip locked
),
-- The runs that get another try, after a pause that grows with their crashes.
back as (
    update underway.run r
    set state = placed.state,
        due_at = placed.due_at,
        rank = placed.rank,
        crashes = l.crashes,
        attempt_number = l.attempt_number,
        owner = null,
        lease_expires_at = null,
        progress = null
    from expired l
    cross join lateral underway.place_run(
        now(), make_interval(secs => least(60, 2 ^ least(l.crashes - 1, 6))), l.priority, false
    ) placed
    where r.id = any(array(select id from expired)) and r.id = l.id and r.token = l.token and l.final is null
    returning r.id, r.token, r.attempt_number, r.step, l.owner
),
-- The runs that end.
ended as (
    delete from underway.run r
    using expired l
    where r.id = any(array(select id from expired)) and r.id = l.id and r.token = l.token and l.final is not null
    returning r.*, l.final, case l.final when 'cancelled' then 'cancelled' else 'lost' end as outcome,
        r.attempts as final_attempts, case l.final when 'failed' then l.crashes else r.crashes end as final_crashes,
        case l.final when 'cancelled' then 'cancelled; its lease expired, its supervisor is gone'
            else format('quarantined after %%s crashes: the lease expired, its supervisor is gone', l.crashes)
            end as error,
        null::text as payload, l.owner as last_owner, l.attempt_number as last_attempt_number
),
filed as (
    :file_finished_runs
    on conflict (id) do nothing
),
recorded as (
    insert into underway.attempt (run_id, token, attempt_number, pid, finished_at, step, outcome, host, error)
    select t.id, t.token, t.attempt_number, s.pid, now(), t.step, t.outcome, s.host,
        format('the lease expired: supervisor %%s did not renew it', t.owner)
    from (
        select id, token, attempt_number, step, owner, 'lost' as outcome from back
        union all
        select id, token, last_attempt_number, step, last_owner, outcome from ended
    ) t
    left join underway.supervisor s on s.id = t.owner
)
select id::text, token, null as final, null::text[] as locked_keys from back
union all
select id::text, token, final,
    (select underway.grant_keys(array_agg(queue), array_agg(concurrency_key)) from ended where holds_key)
from ended;

-- claimed_runs: the runs that this supervisor owns, with their tokens, except cancelled ones
select id::text, token
from underway.run
where state = 'in_progress' and owner = %(owner)s and not cancel_requested;

-- release_unknown: give back runs that we own but do not know of, because the answer of their claim was lost
--
-- Named by their tokens, because the statement may take effect late, in a server process that has not noticed yet that
-- we are gone. When it named the known runs instead, it gave back runs that had been claimed meanwhile, and steps ran
-- twice at a time.
update underway.run r
set state = 'pending', owner = null, lease_expires_at = null, releases = least(r.releases, 1999999999) + 1
from unnest(%(ids)s::uuid[], %(tokens)s::int8[]) as g (id, token)
where r.id = any(array(
        select l.id from underway.run l where l.id = any(%(ids)s::uuid[]) order by l.id for no key update skip locked
    ))
    and r.id = g.id and r.token = g.token and r.owner = %(owner)s
    and r.state = 'in_progress' and not r.cancel_requested;

-- cancel_requests: the runs of this supervisor that are cancelled
select id::text, token, attempts, crashes
from underway.run
where cancel_requested and owner = %(owner)s;

-- paused_queues: the queues in which no run may start
select name from underway.queue where paused;

-- listen: receive notifications of new runs
listen underway;

-- notify_self: whether a notification comes back on this connection
select pg_notify('underway', %(nonce)s);
