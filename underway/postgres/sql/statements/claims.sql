-- claim_tasks: take pending runs of these lanes in the order of their ranks, with a limited number of suspects
--
-- Each lane is probed by its index from its cursor on. Then the candidates are locked one by one in their order, until
-- there are as many as wanted. `cross join lateral` and `ctid = any(array(...))` keep the plan the same on an empty
-- table and beside millions of rows. (With the candidates locked in one scan of `ctid = any(array(...))`, each row that
-- another claim took meanwhile had the whole array sorted again to recheck that row: 16 claimers of 10,000 runs waited
-- 5 s for a claim of none.)
--
-- Of the locked candidates, the claim takes the oldest ones whose inputs together fit into the byte limit, and at least
-- one. The locks on the others end with the statement. (On a 3 MB/s network, a claim of 900 inputs of 60 kB never
-- completed.)
with lane as materialized (
    select queue, job, step, lease, max_crashes, to_timestamp(cursor) as cursor, cursor_id, n
    from unnest(
        %(queues)s::text[], %(jobs)s::text[], %(steps)s::text[], %(leases)s::float8[], %(max_crashes)s::int[],
        %(cursors)s::float8[], %(cursor_ids)s::uuid[]
    ) with ordinality as lane (queue, job, step, lease, max_crashes, cursor, cursor_id, n)
    where queue <> all(array(select name from underway.queue where paused))
),
-- The oldest runs behind the cursors, of all lanes together.
fresh as (
    select candidate.*
    from lane cross join lateral (
        select p.ctid, p.rank, p.id from underway.run p
        where p.queue = lane.queue and p.job = lane.job and p.step = lane.step
            and p.state = 'pending' and p.crashes = 0
            and (p.rank, p.id) > (lane.cursor, lane.cursor_id)
        order by p.rank, p.id
        limit %(candidates)s
    ) candidate
    order by candidate.rank, candidate.id
    limit %(candidates)s
),
-- The oldest suspects of all lanes together, wherever the cursors are: there are few of them.
suspect as (
    select candidate.*
    from lane cross join lateral (
        select p.ctid, p.rank, p.id from underway.run p
        where p.queue = lane.queue and p.job = lane.job and p.step = lane.step
            and p.state = 'pending' and p.crashes > 0
        order by p.rank, p.id
        limit %(suspects)s
    ) candidate
    order by candidate.rank, candidate.id
    limit %(suspects)s
),
oldest as (
    select * from fresh union all select * from suspect order by rank, id
),
-- One row lock after the other, until there are enough.
locked as (
    select candidate.ctid, candidate.input_bytes
    from oldest cross join lateral (
        select c.ctid, c.input_bytes from underway.run c
        where c.ctid = oldest.ctid and c.state = 'pending'
        for update skip locked
    ) candidate
    limit %(tasks)s
),
measured as (
    select ctid, input_bytes, sum(input_bytes) over (rows unbounded preceding) as total_bytes from locked
),
claimed as (
    update underway.run r
    set state = 'in_progress',
        token = nextval('underway.token'),
        owner = %(owner)s,
        lease_expires_at = clock_timestamp() + make_interval(secs => lane.lease),
        max_crashes = lane.max_crashes
    from lane
    where r.ctid = any(array(
            select ctid from measured where total_bytes <= %(size)s::int8 or total_bytes = input_bytes
        ))
        and r.queue = lane.queue and r.job = lane.job and r.step = lane.step
    returning r.id, r.token, lane.n, r.attempt_number, r.attempts, r.crashes, r.releases, r.holds_key, r.rank,
        r.scheduled_at, r.input
)
select id::text, token, n, attempt_number, attempts, crashes, releases, holds_key, date_part('epoch', rank),
    date_part('epoch', scheduled_at), input::text
from claimed
order by rank, claimed.id;

-- advance_token_sequence: continue behind the last token that this supervisor has seen
--
-- A promoted asynchronous standby may not know that token, and would hand it out again. Then the end of an old attempt,
-- in a worker that has not noticed the failover, would be taken for the end of another run.
select underway.advance_token_sequence(%(last)s::int8);

-- recover_tokens: advance the token sequence past the tokens in the rows, on a server to which it was not copied
--
-- Only the owner of a sequence may change it.
select underway.recover_tokens()
from pg_class
where oid = 'underway.token'::regclass and pg_has_role(relowner, 'usage');

-- promote_runs: make waiting runs pending that are due, except those that have yet to get a key
--
-- Other supervisors may serve them, so those are notified. `since` is where the scan of the index begins, like the
-- cursor of a lane; also in join_key_queue and seconds_until_due.
with promoted as (
    update underway.run r
    set state = 'pending'
    where r.ctid = any(array(
        select w.ctid
        from underway.run w
        where w.state = 'waiting' and w.due_at <= now() and w.due_at >= to_timestamp(%(since)s)
            and (w.concurrency_key is null or w.holds_key)
        order by w.due_at, w.id
        offset %(passing_over)s
        limit %(limit)s
        for no key update skip locked
    ))
    returning r.queue
)
select queue, (select count(underway.wake(woken.queue)) from (select distinct queue from promoted) woken) as woken
from promoted;

-- join_key_queue: let due runs join the lines for their keys, and admit as many as there are free slots
--
-- The given keys are those that were locked the last time. From now on a run in line has no due time: only a run that
-- gives up the key causes it to be looked at. Hold the key's lock; otherwise its holder skips our locked row and admits
-- the next.
with joined as (
    update underway.run r
    set due_at = null, rank = least(r.rank, r.due_at - r.priority * interval '1 minute')
    where r.ctid = any(array(
        select w.ctid
        from underway.run w
        where w.state = 'waiting' and w.concurrency_key is not null and not w.holds_key
            and w.due_at <= now() and w.due_at >= to_timestamp(%(since)s)
            and pg_try_advisory_xact_lock(hashtextextended(w.queue || chr(31) || w.concurrency_key, 0))
        order by w.due_at, w.id
        offset %(passing_over)s
        limit %(limit)s
        for no key update skip locked
    ))
    returning r.queue, r.concurrency_key
),
wanted as (
    select queue, concurrency_key as key from joined
    union all
    select * from unnest(%(queues)s::text[], %(keys)s::text[])
)
select count(*) as looked_at, underway.grant_keys(array_agg(queue), array_agg(key)) as locked_keys
from wanted;

-- sweep_keys: look at keys in their order, from the given one on, for runs in line beside a free slot; admit those runs
--
-- This finds keys that were not passed on, because the process that gave up a key was killed before it could try again,
-- or because a row was changed by hand.
with recursive line as (
    (
        select w.queue, w.concurrency_key as key, coalesce(w.concurrency_limit, 1) as slots, 1 as n
        from underway.run w
        where w.state = 'waiting' and w.concurrency_key is not null and not w.holds_key and w.rank is not null
            and (w.queue, w.concurrency_key) > (%(queue)s::text, %(key)s::text)
        order by w.queue, w.concurrency_key, w.rank, w.id
        limit 1
    )
    union all
    select following.*, line.n + 1
    from line cross join lateral (
        select w.queue, w.concurrency_key, coalesce(w.concurrency_limit, 1)
        from underway.run w
        where w.state = 'waiting' and w.concurrency_key is not null and not w.holds_key and w.rank is not null
            and (w.queue, w.concurrency_key) > (line.queue, line.key)
        order by w.queue, w.concurrency_key, w.rank, w.id
        limit 1
    ) following
    where line.n < %(limit)s
),
free as (
    select queue, key from line
    where slots > (
        select count(*) from underway.run h where h.holds_key and h.queue = line.queue and h.concurrency_key = line.key
    )
)
select (select queue from line where n = %(limit)s) as last_queue,
    (select key from line where n = %(limit)s) as last_key,
    (select underway.grant_keys(array_agg(queue), array_agg(key)) from free) as locked_keys;

-- seconds_until_due: how long until the next waiting run is due, null if none waits; and where the next scan may begin
select extract(epoch from min(due_at) - clock_timestamp())::float8 as seconds,
    date_part('epoch', least(min(due_at), now())) as since
from underway.run
where state = 'waiting' and due_at >= to_timestamp(%(since)s);

-- has_work: whether a run of these jobs is pending, in progress, waiting for a retry, or in line for a key
select exists (
    select from underway.run
    where job = any(%(jobs)s)
        and (state in ('pending', 'in_progress') or attempts > 0 or crashes > 0
            or (concurrency_key is not null and rank is not null))
) as has_work;
