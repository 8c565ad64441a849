-- Admit the oldest runs in line for these keys while slots are free. Returns the keys that somebody else is passing on
-- at this moment, as {{queue,key},...}: try those again soon; null if there are none.
--
-- Slots are counted and given away under the key's lock only, by queries that begin when it is held. The lock is never
-- waited for. Where runs of one key disagree about its limit, that of the oldest in line counts.
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
        select queue, key, case when n <= 1000
            then pg_try_advisory_xact_lock(hashtextextended(queue || chr(31) || key, 0)) else false end as ours
        from (
            select g.queue, g.key, row_number() over () as n from unnest(queues, keys) as g (queue, key)
            group by g.queue, g.key
        ) wanted
    ) tried;
    begin
        with admitted as (
            update underway.run r
            set state = 'pending', holds_key = true,
                due = greatest(least(r.rank + r.priority * interval '1 minute', '9999-12-31 00:00+00'), '1000-01-01 00:00+00')
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
    exception
        -- A run that cannot be admitted blocks only its own key. It must not undo the transaction that gave up the key,
        -- because another run ended in it. (Waiting runs with a due time in the year 9999 made other runs fail.)
        when data_exception or integrity_constraint_violation or program_limit_exceeded then
            if cardinality(ours_keys) = 1 then
                raise warning 'underway: a run in line for the key % cannot be admitted: %', ours_keys[1], sqlerrm;
            else
                perform underway.pass_keys(array[g.queue], array[g.key])
                from unnest(ours_queues, ours_keys) as g (queue, key);
            end if;
    end;
    perform underway.wake(queue) from unnest(woken) as w (queue);
    return others;
end
$$;
comment on function underway.pass_keys is 'every statement with which a run gives up its key ends with this';
