-- Public contract, version 1: any language enqueues in its own transaction. Returns the run's id.
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
    due timestamptz;
    delayed boolean;
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
    unique_key := underway.fill_key(coalesce(unique_key, defaults.unique_key), payload);
    concurrency_key := underway.fill_key(coalesce(concurrency_key, defaults.concurrency_key), payload);
    if priority not between -32768 and 32767 then
        raise exception 'priority must lie between -32768 and 32767, not %', priority using errcode = 'UW002';
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
            unique_key, concurrency_key, defaults.key_limit, payload)
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
comment on function underway.enqueue is 'enqueues a run of a job and returns its id';

-- The function works with the rights of the schema's owner, so the right to use the schema must not be enough to call
-- it.
revoke execute on function underway.enqueue from public;
