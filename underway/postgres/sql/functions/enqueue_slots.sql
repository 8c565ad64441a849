-- A slot's unique key may be taken by a transaction that is still open. A client waits for it; a supervisor waits for
-- nobody, and looks again a second later. Ten milliseconds, since even a page added to the table is waited for.
create or replace function underway.enqueue_slots(
    run_ids uuid[],
    slots timestamptz[],
    schedule text,
    job text,
    step text,
    queue text,
    priority smallint,
    keep interval,
    delay interval,
    unique_key text,
    concurrency_key text,
    key_limit smallint,
    input json
) returns int
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '10ms'
as $$
#variable_conflict use_column
declare
    delayed boolean := enqueue_slots.delay > interval '0';
    due timestamptz := now() + enqueue_slots.delay;
    enqueued int;
begin
    unique_key := underway.fill_key(enqueue_slots.unique_key, enqueue_slots.input);
    concurrency_key := underway.fill_key(enqueue_slots.concurrency_key, enqueue_slots.input);
    insert into underway.run (id, job, step, queue, priority, keep, due, rank, state, scheduled_for, schedule,
        unique_key, concurrency_key, key_limit, input)
    select slot.id, enqueue_slots.job, enqueue_slots.step, enqueue_slots.queue, enqueue_slots.priority,
        enqueue_slots.keep, due,
        case when delayed and enqueue_slots.concurrency_key is not null then 'infinity'
            else due - enqueue_slots.priority * interval '1 minute' end,
        case when delayed or enqueue_slots.concurrency_key is not null then 'waiting' else 'pending' end,
        slot.at, enqueue_slots.schedule, enqueue_slots.unique_key, enqueue_slots.concurrency_key,
        enqueue_slots.key_limit, enqueue_slots.input
    from unnest(run_ids, slots) as slot (id, at)
    order by slot.at
    on conflict (job, unique_key) where unique_key is not null do nothing;
    get diagnostics enqueued = row_count;
    return enqueued;
exception
    when lock_not_available then
        return null;
    -- The stored input does not fit a key of today's code: nothing is wrong with the connection.
    when sqlstate 'UW003' then
        raise exception '%', sqlerrm using errcode = 'data_exception';
end
$$;
comment on function underway.enqueue_slots is
    'enqueues a run for each slot, but none where a live run has the unique key; how many. Null: who has it is undecided';
