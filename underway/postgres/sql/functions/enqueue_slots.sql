-- A slot's unique key may be taken by a transaction that is still open. A client waits for it. A supervisor does not,
-- and tries again a second later. Not less than ten milliseconds, because even extending the table by a page takes a
-- lock.
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
    concurrency_limit smallint,
    input json
) returns int
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '10ms'
as $$
#variable_conflict use_column
declare
    enqueued int;
begin
    unique_key := underway.render_key(enqueue_slots.unique_key, enqueue_slots.input);
    concurrency_key := underway.render_key(enqueue_slots.concurrency_key, enqueue_slots.input);
    insert into underway.run (id, job, step, queue, priority, keep, due_at, rank, state, scheduled_at, schedule,
        unique_key, concurrency_key, concurrency_limit, input)
    select slot.id, enqueue_slots.job, enqueue_slots.step, enqueue_slots.queue, enqueue_slots.priority,
        enqueue_slots.keep, placed.due_at, placed.rank, placed.state, slot.at, enqueue_slots.schedule,
        enqueue_slots.unique_key, enqueue_slots.concurrency_key, enqueue_slots.concurrency_limit, enqueue_slots.input
    from unnest(run_ids, slots) as slot (id, at)
    cross join underway.place_run(
        now(), enqueue_slots.delay, enqueue_slots.priority, enqueue_slots.concurrency_key is not null
    ) placed
    order by slot.at
    on conflict (job, unique_key) where unique_key is not null do nothing;
    get diagnostics enqueued = row_count;
    return enqueued;
exception
    when lock_not_available then
        return null;
    -- The stored input does not fit a key of the current code. The connection is not to blame.
    when sqlstate 'UW003' then
        raise exception '%', sqlerrm using errcode = 'data_exception';
end
$$;
comment on function underway.enqueue_slots is
    'enqueues a run for each slot whose unique key is free; how many. Null: another transaction holds the unique key';
