-- claim_tasks: take pending runs of these lanes in the order of their rank, and at most so many suspects
--
-- Each lane is probed by its index from its mark on, then the candidates are locked one by one in their order, until
-- there are as many as wanted; lateral and "ctid = any(array(...))" keep the plan the same on an empty table and beside
-- millions of rows. (Locked all in one scan of "ctid = any(array(...))", each row that another claim took meanwhile
-- had the whole array sorted again to look at it once more: 16 claimers of 10,000 runs waited 5 s for a claim of none.)
-- Of the locked candidates, it takes the oldest ones whose inputs together fit into the byte limit, and at least one.
-- The locks on the others end with the statement. (On a 3 MB/s network, a claim of 900 inputs of 60 kB never
-- completed.)
-- Lanes of queues that are paused are left out.
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
            select fitting.ctid
            from (
                select taken.ctid, taken.input_bytes, sum(taken.input_bytes) over (rows unbounded preceding) as bytes
                from (
                    select locked.ctid, locked.input_bytes
                    from (
                        (
                            select candidate.*
                            from lane cross join lateral (
                                select p.ctid, p.rank, p.id from underway.run p
                                where p.queue = lane.queue and p.job = lane.job and p.step = lane.step
                                    and p.state = 'pending' and p.crashes = 0
                                    and (p.rank, p.id) > (lane.mark, lane.mark_id)
                                order by p.rank, p.id
                                limit %(candidates)s
                            ) candidate
                            order by candidate.rank, candidate.id
                            limit %(candidates)s
                        )
                        union all
                        (
                            select suspect.*
                            from lane cross join lateral (
                                select p.ctid, p.rank, p.id from underway.run p
                                where p.queue = lane.queue and p.job = lane.job and p.step = lane.step
                                    and p.state = 'pending' and p.crashes > 0
                                order by p.rank, p.id
                                limit %(suspects)s
                            ) suspect
                            order by suspect.rank, suspect.id
                            limit %(suspects)s
                        )
                        order by rank, id
                    ) oldest
                    cross join lateral (
                        select c.ctid, c.input_bytes from underway.run c
                        where c.ctid = oldest.ctid and c.state = 'pending'
                        for update skip locked
                    ) locked
                    limit %(tasks)s
                ) taken
            ) fitting
            where bytes <= %(size)s::int8 or bytes = input_bytes
        ))
        and r.queue = lane.queue and r.job = lane.job and r.step = lane.step
    returning r.id, r.token, lane.n, r.number, r.attempts, r.crashes, r.releases, r.holds_key,
        r.rank, r.scheduled_for, r.input
)
select id::text, token, n, number, attempts, crashes, releases, holds_key, date_part('epoch', rank),
    date_part('epoch', scheduled_for), input::text
from claimed
order by rank, claimed.id;

-- pass_tokens: go on behind the last token that this supervisor has seen
--
-- An asynchronous standby that was promoted may never have heard of it, and would hand it out again: what ends under the
-- old one, in a worker that has not heard of the failover, would be taken for the end of another run.
select underway.pass_tokens(%(last)s::int8);

-- recover_tokens: advance the token sequence past the tokens in the rows, on a server to which it was not copied
--
-- Only the owner of a sequence may change it.
select underway.recover_tokens()
from pg_class
where oid = 'underway.token'::regclass and pg_has_role(relowner, 'usage');

-- promote_runs: make waiting runs pending whose time has come, but for those that have yet to get a key
--
-- Not all of them are for the supervisor that does this: those that serve their queues are told.
-- `since`, as in line_up_runs and seconds_until_due: a look may begin there, as a claim at the mark of its lane.
with promoted as (
    update underway.run r
    set state = 'pending'
    where r.ctid = any(array(
        select w.ctid
        from underway.run w
        where w.state = 'waiting' and w.due <= now() and w.due >= to_timestamp(%(since)s)
            and (w.concurrency_key is null or w.holds_key)
        order by w.due, w.id
        offset %(passing_over)s
        limit %(limit)s
        for no key update skip locked
    ))
    returning r.queue
)
select queue, (select count(underway.wake(woken.queue)) from (select distinct queue from promoted) woken) as woken
from promoted;

-- line_up_runs: let runs whose time has come get in line for their keys, and admit what these have slots for
--
-- The keys given are those that could not be passed on the last time. From now on a run in line is looked at only by
-- whoever gives up its key. Under the key's lock, or else whoever has it finds the oldest in line locked by us, and
-- lets in the second.
with lined_up as (
    update underway.run r
    set due = '9999-12-31 00:00+00', rank = least(r.rank, r.due - r.priority * interval '1 minute')
    where r.ctid = any(array(
        select w.ctid
        from underway.run w
        where w.state = 'waiting' and w.concurrency_key is not null and not w.holds_key
            and w.due <= now() and w.due >= to_timestamp(%(since)s)
            and pg_try_advisory_xact_lock(hashtextextended(w.queue || chr(31) || w.concurrency_key, 0))
        order by w.due, w.id
        offset %(passing_over)s
        limit %(limit)s
        for no key update skip locked
    ))
    returning r.queue, r.concurrency_key
)
select count(*) as looked_at, underway.pass_keys(array_agg(queue), array_agg(key)) as locked_keys
from (
    select queue, concurrency_key as key from lined_up
    union all
    select * from unnest(%(queues)s::text[], %(keys)s::text[])
) wanted;

-- sweep_keys: look at keys in their order, from the given one on, for runs in line beside a free slot; admit them
--
-- Finds what nobody passed on: whoever gave up the key was killed before it could try again, or did so by hand.
with recursive line as (
    (
        select w.queue, w.concurrency_key as key, w.rank, coalesce(w.key_limit, 1) as slots, 1 as n
        from underway.run w
        where w.state = 'waiting' and w.concurrency_key is not null and not w.holds_key
            and (w.queue, w.concurrency_key) > (%(queue)s::text, %(key)s::text)
        order by w.queue, w.concurrency_key, w.rank, w.id
        limit 1
    )
    union all
    select following.*, line.n + 1
    from line cross join lateral (
        select w.queue, w.concurrency_key, w.rank, coalesce(w.key_limit, 1)
        from underway.run w
        where w.state = 'waiting' and w.concurrency_key is not null and not w.holds_key
            and (w.queue, w.concurrency_key) > (line.queue, line.key)
        order by w.queue, w.concurrency_key, w.rank, w.id
        limit 1
    ) following
    where line.n < %(limit)s
),
free as (
    select queue, key from line
    where rank < 'infinity' and slots > (
        select count(*) from underway.run h where h.holds_key and h.queue = line.queue and h.concurrency_key = line.key
    )
)
select (select queue from line where n = %(limit)s) as last_queue,
    (select key from line where n = %(limit)s) as last_key,
    (select underway.pass_keys(array_agg(queue), array_agg(key)) from free) as locked_keys;

-- seconds_until_due: how long until the next waiting run is due, null when none waits; and since when the next one may be
select extract(epoch from min(due) - clock_timestamp())::float8 as seconds,
    date_part('epoch', least(min(due), now())) as since
from underway.run
where state = 'waiting' and due >= to_timestamp(%(since)s) and due < '9999-12-31 00:00+00';

-- has_work: is a run of these jobs pending, in progress, waiting for a retry, or in line for a key
select exists (
    select from underway.run
    where job = any(%(jobs)s)
        and (state in ('pending', 'in_progress') or attempts > 0 or crashes > 0
            or (concurrency_key is not null and rank < 'infinity'))
) as has_work;
