-- A NOTIFY only for a supervisor that serves the queue; a cancel that is final, and one by concurrency key; an index for
-- looking at the runs that did not succeed.
-- oldest code: 1

-- First, while nothing else is locked: beside millions of finished runs it takes seconds, in which nothing can end.
create index finished_run_unsuccessful on underway.finished_run (state, id) where state <> 'succeeded';

-- Waking. A NOTIFY makes those who enqueue commit one after another. One that no idle supervisor has any use for costs
-- as much.

alter table underway.supervisor add column queues text[];
comment on column underway.supervisor.queues is
    'with idle: the queues it wants a NOTIFY for; null for code that does not say, and wants all';

create function underway.wake(queue text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (
        select from underway.supervisor s where s.idle and (s.queues is null or wake.queue = any(s.queues))
    ) then
        perform pg_notify('underway', wake.queue);
    end if;
end
$$;
comment on function underway.wake is 'NOTIFY for a queue, if a supervisor that has nothing to do serves it';

-- As before, but for their calls of underway.wake.

create or replace function underway.enqueue(
    job text,
    input jsonb default 'null',
    delay interval default null,
    priority int default null,
    keep interval default null,
    unique_key text default null,
    concurrency_key text default null
) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    defaults underway.job;
    run_id uuid;
    created uuid;
    live uuid;
    due timestamptz;
    delayed boolean;
begin
    select * into defaults from underway.job j where j.name = enqueue.job;
    if not found then
        raise exception 'underway knows no job %', quote_literal(enqueue.job)
            using errcode = 'UW001',
            hint = 'register it with: underway sync APP (a running supervisor does so at its start)';
    end if;
    input := coalesce(input, 'null');
    priority := coalesce(priority, defaults.priority);
    delay := coalesce(delay, defaults.delay);
    keep := coalesce(keep, defaults.keep);
    unique_key := underway.fill_key(coalesce(unique_key, defaults.unique_key), input);
    concurrency_key := underway.fill_key(coalesce(concurrency_key, defaults.concurrency_key), input);
    if priority not between -32768 and 32767 then
        raise exception 'priority must lie between -32768 and 32767, not %', priority using errcode = 'UW002';
    end if;
    if delay < interval '0' or keep < interval '0' then
        raise exception 'delay and keep must not be negative' using errcode = 'UW002';
    end if;
    delayed := delay > interval '0';
    due := clock_timestamp() + delay;
    -- A UUIDv7: 48 bits of milliseconds in front of random ones, so that new rows go to the end of the index.
    run_id := encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
        52, 1), 53, 1), 'hex')::uuid;
    loop
        insert into underway.run (id, job, step, queue, priority, keep, due, rank, state, unique_key,
            concurrency_key, key_limit, input)
        values (run_id, enqueue.job, defaults.step, defaults.queue, priority, keep, due,
            case when delayed and concurrency_key is not null then 'infinity'
                else due - priority * interval '1 minute' end,
            case when delayed or concurrency_key is not null then 'waiting' else 'pending' end,
            unique_key, concurrency_key, defaults.key_limit, input)
        on conflict (job, unique_key) where unique_key is not null do nothing
        returning id into created;
        exit when created is not null;
        select r.id into live from underway.run r where r.job = enqueue.job and r.unique_key = enqueue.unique_key;
        if live is not null then
            return live;
        end if;
        -- It ended between the two statements.
    end loop;
    perform underway.wake(defaults.queue);
    return run_id;
end
$$;

create or replace function underway.pass_keys(queues text[], keys text[]) returns text[]
language plpgsql strict
set search_path = pg_catalog, pg_temp
as $$
declare
    ours_queues text[];
    ours_keys text[];
    others text[];
    woken text[];
begin
    -- A transaction of a higher level counts the slots of its beginning: it might give one away a second time.
    if current_setting('transaction_isolation') <> 'read committed' then
        return (select array_agg(array[g.queue, g.key]) from unnest(queues, keys) as g (queue, key));
    end if;
    select array_agg(queue) filter (where ours), array_agg(key) filter (where ours),
        array_agg(array[queue, key]) filter (where not ours)
    into ours_queues, ours_keys, others
    from (
        select queue, key, pg_try_advisory_xact_lock(hashtextextended(queue || chr(31) || key, 0)) as ours
        from (select distinct g.queue, g.key from unnest(queues, keys) as g (queue, key)) wanted
    ) tried;
    with admitted as (
        update underway.run r
        set state = 'pending', holds_key = true, due = r.rank + r.priority * interval '1 minute'
        where r.ctid = any(array(
            select next.ctid
            from unnest(ours_queues, ours_keys) as g (queue, key)
            cross join lateral (
                select coalesce(w.key_limit, 1) - (
                        select count(*) from underway.run h
                        where h.holds_key and h.queue = g.queue and h.concurrency_key = g.key
                    ) as slots
                from underway.run w
                where w.queue = g.queue and w.concurrency_key = g.key and w.state = 'waiting' and not w.holds_key
                    and w.rank < 'infinity'
                order by w.rank, w.id
                limit 1
            ) line
            cross join lateral (
                select w.ctid
                from underway.run w
                where w.queue = g.queue and w.concurrency_key = g.key and w.state = 'waiting' and not w.holds_key
                    and w.rank < 'infinity'
                order by w.rank, w.id
                limit greatest(line.slots, 0)
                for no key update skip locked
            ) next
        ))
        returning r.queue
    )
    select array_agg(distinct queue) into woken from admitted;
    perform underway.wake(queue) from unnest(woken) as w (queue);
    return others;
end
$$;

-- Cancel.

-- Of the runs with a label none was cancelled, so this is the only way back for one.
create function underway.redrive_run(run_id uuid, input json) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    ended text;
begin
    -- Locked: it cannot be redriven and cancelled by others between this look and our redrive.
    select f.state into ended from underway.finished_run f where f.id = run_id for update;
    if ended = 'cancelled' then
        raise exception 'run % was cancelled, and a cancel is final', run_id
            using errcode = 'UW004', hint = 'enqueue its input again';
    end if;
    return underway.redrive_runs(array[run_id], input) = 1;
end
$$;
comment on function underway.redrive_run is 'used by the Python client: takes json, so the input is stored as it was
written';

create or replace function underway.redrive(run_id uuid, input jsonb default null) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$ select underway.redrive_run(run_id, underway.payload(input)) $$;
comment on function underway.redrive is
    'redrives one run that has failed, if no other is live under its unique key; an error if it was cancelled';

create function underway.cancel_concurrency_key(job text, concurrency_key text) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    select underway.cancel_runs((
        select array_agg(r.id) from underway.run r
        where r.job = cancel_concurrency_key.job and r.concurrency_key = cancel_concurrency_key.concurrency_key
    ))
$$;
comment on function underway.cancel_concurrency_key is
    'cancels the live runs of a job that have this concurrency key; how many';
