-- The public contract with other languages: enqueue a run in the caller's own transaction.
--
-- It works with the rights of the schema's owner, so that its caller needs no right to any table. search_path is
-- pinned, with pg_temp last, and no text is executed: a caller can bring in neither tables nor functions nor operators.
create or replace function underway.enqueue(
    job text,
    input jsonb default 'null',
    delay interval default null,
    priority int default null,
    keep interval default null,
    unique_key text default null,
    concurrency_key text default null
) returns uuid
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    defaults underway.job;
    run_id uuid;
    created uuid;
    live uuid;
    enqueued_at timestamptz;
    payload json := underway.payload(coalesce(input, 'null'));
begin
    select * into defaults from underway.job j where j.name = enqueue.job;
    if not found then
        raise exception 'underway knows no job %', quote_literal(enqueue.job)
            using errcode = 'UW001',
            hint = 'register it with: underway sync APP (a running supervisor does so at its start)';
    end if;
    priority := coalesce(priority, defaults.priority);
    delay := underway.checked_duration('delay', coalesce(delay, defaults.delay));
    keep := underway.checked_duration('keep', coalesce(keep, defaults.keep));
    unique_key := underway.render_key(coalesce(unique_key, defaults.unique_key), payload);
    concurrency_key := underway.render_key(coalesce(concurrency_key, defaults.concurrency_key), payload);
    if priority not between -32768 and 32767 then
        raise exception 'priority must lie between -32768 and 32767, not %', priority using errcode = 'UW002';
    end if;
    enqueued_at := clock_timestamp();
    -- A UUIDv7: 48 bits of milliseconds in front of random ones, so that new rows go to the end of the index.
    run_id := encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
        52, 1), 53, 1), 'hex')::uuid;
    loop
        insert into underway.run (id, job, step, queue, priority, keep, due_at, rank, state, unique_key,
            concurrency_key, concurrency_limit, input)
        select run_id, enqueue.job, defaults.step, defaults.queue, enqueue.priority, enqueue.keep, placed.due_at,
            placed.rank, placed.state, enqueue.unique_key, enqueue.concurrency_key, defaults.concurrency_limit, payload
        from underway.place_run(
            enqueued_at, enqueue.delay, enqueue.priority, enqueue.concurrency_key is not null
        ) placed
        on conflict (job, unique_key) where unique_key is not null do nothing
        returning id into created;
        exit when created is not null;
        select r.id into live from underway.run r where r.job = enqueue.job and r.unique_key = enqueue.unique_key;
        if live is not null then
            return live;
        end if;
        -- The run with this key ended between the two statements.
    end loop;
    perform underway.wake(defaults.queue);
    return run_id;
end
$$;
comment on function underway.enqueue is
    'enqueues a run and returns its id; with the unique key of a live run of the job, only returns the id of that run';

-- The right to use the schema must not be enough to call it.
revoke execute on function underway.enqueue from public;
