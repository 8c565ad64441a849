-- Admits the oldest runs in line for these keys while slots are free. Every statement with which a run releases its key
-- ends with this.
--
-- A run with a concurrency key is inserted waiting, and only this function makes it pending. Until then due_at and rank
-- say where it stands:
--   due_at   when a promoter looks at it; null: never, because a run that gives up the key will pass it on
--   rank     its place in the line for the key; null: not in line yet, because its delay has not passed
-- So a hundred thousand runs in line for one key cost nothing. When a run is admitted, due_at is rank + priority * 1
-- minute again.
--
-- Slots are counted and given away only under the key's lock, by queries that begin when the lock is held. The lock is
-- never waited for: keys that another session has locked are returned, to be tried again soon. Where runs of one key
-- disagree about its limit, the limit of the oldest in line counts.
--
-- At most a thousand keys are locked in one call; the others are returned as well. Each lock is held to the end of the
-- transaction, in a table that all sessions of the server share. (A cancel of thirteen thousand runs with a key each
-- filled it, and failed with "out of shared memory", as did other sessions meanwhile.)
create or replace function underway.grant_keys(queues text[], keys text[]) returns text[]
language plpgsql strict
set search_path = pg_catalog, pg_temp
as $$
declare
    our_queues text[];
    our_keys text[];
    locked_keys text[];
    woken text[];
begin
    -- A transaction of a higher isolation level counts the slots of its beginning: it might give one away a second
    -- time.
    if current_setting('transaction_isolation') <> 'read committed' then
        return (select array_agg(array[g.queue, g.key]) from unnest(queues, keys) as g (queue, key));
    end if;
    select array_agg(queue) filter (where is_ours), array_agg(key) filter (where is_ours),
        array_agg(array[queue, key]) filter (where not is_ours)
    into our_queues, our_keys, locked_keys
    from (
        select queue, key, case when n <= 1000
            then pg_try_advisory_xact_lock(hashtextextended(queue || chr(31) || key, 0)) else false end as is_ours
        from (
            select g.queue, g.key, row_number() over () as n from unnest(queues, keys) as g (queue, key)
            group by g.queue, g.key
        ) wanted
    ) tried;
    begin
        with admitted as (
            update underway.run r
            set state = 'pending', holds_key = true,
                due_at = greatest(
                    least(r.rank + r.priority * interval '1 minute', '9999-12-31 00:00+00'), '1000-01-01 00:00+00'
                )
            where r.ctid = any(array(
                select next.ctid
                from unnest(our_queues, our_keys) as g (queue, key)
                cross join lateral (
                    select coalesce(w.concurrency_limit, 1) - (
                            select count(*) from underway.run h
                            where h.holds_key and h.queue = g.queue and h.concurrency_key = g.key
                        ) as slots
                    from underway.run w
                    where w.queue = g.queue and w.concurrency_key = g.key and w.state = 'waiting' and not w.holds_key
                        and w.rank is not null
                    order by w.rank, w.id
                    limit 1
                ) line
                cross join lateral (
                    select w.ctid
                    from underway.run w
                    where w.queue = g.queue and w.concurrency_key = g.key and w.state = 'waiting' and not w.holds_key
                        and w.rank is not null
                    order by w.rank, w.id
                    limit greatest(line.slots, 0)
                    for no key update skip locked
                ) next
            ))
            returning r.queue
        )
        select array_agg(distinct queue) into woken from admitted;
    exception
        -- A run that cannot be admitted blocks only its own key. It must not undo the transaction that gave up the key,
        -- because another run ended in it. (Waiting runs with a due time in the year 9999 made other runs fail.)
        when data_exception or integrity_constraint_violation or program_limit_exceeded then
            if cardinality(our_keys) = 1 then
                raise warning 'underway: a run in line for the key % cannot be admitted: %', our_keys[1], sqlerrm;
            else
                perform underway.grant_keys(array[g.queue], array[g.key])
                from unnest(our_queues, our_keys) as g (queue, key);
            end if;
    end;
    perform underway.wake(queue) from unnest(woken) as w (queue);
    return locked_keys;
end
$$;
comment on function underway.grant_keys is
    'admits runs that wait for these keys; the keys that are locked, as {{queue,key},...}, or null if there are none';
