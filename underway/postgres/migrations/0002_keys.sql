-- Keys: templates, unique keys in underway.enqueue, and concurrency keys, whose slots are flags on the runs.
-- oldest code: 1

-- First of all, and the view before its tables, as whoever reads it does: or the two wait for each other.
lock table underway.runs in access exclusive mode;

-- A run with a concurrency key is inserted waiting, and nothing but underway.pass_keys lets it become pending. Until
-- then its two times say where it stands:
--   due    when a promoter is to look at it next; infinity (since 0009 the end of the year 9999): never, a run that
--          gives up the key will pass it on
--   rank   its place in the line for the key; infinity: not in line yet, since its delay has not passed
-- So a hundred thousand runs in line for one key are looked at by nobody. When a run is admitted, due is
-- rank + priority * 1 minute again.
alter table underway.run add column holds_key boolean not null default false;
comment on column underway.run.holds_key is
    'has one of the key_limit slots of (queue, concurrency_key): from pending on, through retries and crashes';

-- A run in progress always has an owner and a lease; otherwise the reaper could never take it back. A run with a key is
-- pending only while it holds one of the key's slots.
alter table underway.run add constraint run_state check (
    case state
        when 'pending' then owner is null and (concurrency_key is null or holds_key)
        when 'waiting' then owner is null
        when 'in_progress' then owner is not null and lease_until is not null
            and (concurrency_key is null or holds_key)
        else false
    end
);

create index run_holds_key on underway.run (queue, concurrency_key) where holds_key;
create index run_key_due on underway.run (due, id)
    where state = 'waiting' and concurrency_key is not null and not holds_key;

-- Slots were to be rows of their own. A flag cannot drift from the run it belongs to.
drop table underway.key_slot;

-- Infinity is for indexes, not for people, and many drivers cannot read it.
create or replace view underway.runs as
select id, job, step, state, queue, priority, number as attempts_made, attempts, crashes, releases, created_at,
    nullif(due, 'infinity') as due, lease_until, owner, progress, input, null::json as result, null::text as error,
    null::timestamptz as finished_at, null::text as dead_letter, null::timestamptz as expires_at
from underway.run
union all
select id, job, step, state, queue, priority, null, attempts, crashes, releases, created_at,
    null, null, null, null, input, result, error, finished_at, dead_letter, expires_at
from underway.finished_run;

-- Whether a run takes its slot along to its next step; a retry (no next queue) always does.
create function underway.keeps_key(holds boolean, queue text, key text, next_queue text, next_key text)
returns boolean
language sql immutable
return holds and (next_queue is null or (next_queue = queue and next_key is not distinct from key));

-- Admit the oldest runs in line for these keys while slots are free. Returns the keys that somebody else is passing on
-- at this moment, as {{queue,key},...}: try those again soon; null if there are none.
--
-- Slots are counted and given away under the key's lock only, by queries that begin when it is held. The lock is never
-- waited for. Where runs of one key disagree about its limit, that of the oldest in line counts.
create function underway.pass_keys(queues text[], keys text[]) returns text[]
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
    if woken is not null and exists (select from underway.supervisor s where s.idle) then
        perform pg_notify('underway', queue) from unnest(woken) as w (queue);
    end if;
    return others;
end
$$;
comment on function underway.pass_keys is 'every statement with which a run gives up its key ends with this';

-- Fills a key template: {field} and {outer.field} stand for strings, integers and booleans of the input. An integer is
-- written with digits only: 1.0 and 1e3 are rejected. underway/keys/template.py is the same in Python.
create function underway.fill_key(template text, input json) returns text
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    filled text := '';
    rest text := template;
    field text;
    name text;
    leaf json;
begin
    if template !~ '^([^{}]|\{[^{}.]+(\.[^{}.]+)*\})+$' then
        raise exception 'a key is a text in which {field} stands for a field of the input, not %',
            quote_literal(template) using errcode = 'UW002';
    end if;
    while strpos(rest, '{') > 0 loop
        filled := filled || split_part(rest, '{', 1);
        field := split_part(split_part(rest, '{', 2), '}', 1);
        rest := substr(rest, strpos(rest, '}') + 1);
        leaf := input;
        foreach name in array string_to_array(field, '.') loop
            leaf := case when json_typeof(leaf) = 'object' then leaf -> name end;
        end loop;
        if leaf is null then
            raise exception 'the key % needs the field %, which the input does not have',
                quote_literal(template), field using errcode = 'UW003';
        end if;
        if json_typeof(leaf) not in ('string', 'boolean', 'number')
            or (json_typeof(leaf) = 'number' and leaf #>> '{}' !~ '^-?[0-9]+$') then
            raise exception 'the key % takes a string, an integer or a boolean from the field %, not %',
                quote_literal(template), field, left(leaf::text, 100) using errcode = 'UW003';
        end if;
        filled := filled || (leaf #>> '{}');
    end loop;
    filled := filled || rest;
    if length(filled) not between 1 and 400 then
        raise exception 'the key % has % characters here, and 1 to 400 are allowed',
            quote_literal(template), length(filled) using errcode = 'UW003';
    end if;
    return filled;
end
$$;

-- Public contract, version 2: two more arguments; all calls of version 1 mean what they meant.
-- With a unique key that a live run of the job has, the id of that run is returned and nothing is enqueued.
drop function underway.enqueue(text, jsonb, interval, int, interval);
create function underway.enqueue(
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
    if exists (select from underway.supervisor s where s.idle) then
        perform pg_notify('underway', defaults.queue);
    end if;
    return run_id;
end
$$;
