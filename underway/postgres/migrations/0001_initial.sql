-- The tables, the sequence of tokens, the view for people, and underway.enqueue for other languages.
-- oldest code: 1

create sequence underway.token as bigint;
comment on sequence underway.token is 'fencing tokens: grows at each claim, never comes back';

-- The ranges of a run's values. The tables reject values outside of them, because one row with an impossible value
-- makes a statement fail for all other rows too. (A due time of 4714 BC from which a priority was subtracted, or a keep
-- of 178 million years, ended every supervisor that read the row.) These are domains, not table constraints: a domain
-- is checked when its value is written, and adds no cost to a claim.
create domain underway.name as text constraint name_length check (length(value) between 1 and 200);
create domain underway.key as text constraint key_length check (length(value) between 1 and 400);
create domain underway.key_limit as smallint constraint key_limit_positive check (value >= 1);
create domain underway.instant as timestamptz constraint instant_range
    check (value between '1000-01-01 00:00+00' and '9999-12-31 00:00+00');
-- due - priority * 1 minute: at most 23 days outside the range of due.
create domain underway.rank as timestamptz constraint rank_range
    check (value between '0999-11-01 00:00+00' and '10000-03-01 00:00+00' or value = 'infinity');
-- Postgres compares intervals as if a month had 30 days. Parts that cancel out, such as '292000 years -105110000 days',
-- overflow when they are added to an instant, so each part is limited too.
create domain underway.duration as interval constraint duration_range
    check (value between '0' and '365000 days'
        and abs(date_part('year', value)) <= 2000 and abs(date_part('day', value)) <= 730000);
-- Well below the largest int4, because statements add 1.
create domain underway.count as int constraint count_range check (value between 0 and 2000000000);

-- Payloads are json, not jsonb: jsonb expands every number, so 8 MiB of 1e308 came back as 357 MB.
--
-- Live runs only. fillfactor leaves room for renewals on the same page; no index may contain lease_until, or not one
-- renewal is HOT. Autovacuum is told to come often: the table is small and turns over completely.
create table underway.run (
    id uuid primary key,
    token bigint not null default 0,
    created_at underway.instant not null default clock_timestamp(),
    due underway.instant not null,
    rank underway.rank not null,
    lease_until underway.instant,
    scheduled_for underway.instant,
    owner uuid,
    keep underway.duration not null,
    number underway.count not null default 0,
    attempts underway.count not null default 0,
    crashes underway.count not null default 0,
    releases underway.count not null default 0,
    max_crashes underway.count not null default 3,
    priority smallint not null default 0,
    key_limit underway.key_limit,
    cancel_requested boolean not null default false,
    state text not null,
    queue underway.name not null,
    job underway.name not null,
    step underway.name not null,
    unique_key underway.key,
    concurrency_key underway.key,
    progress json,
    input json not null,
    input_bytes int not null generated always as (octet_length(input::text)) stored
        constraint run_input_bytes check (input_bytes <= 8388608)
) with (
    fillfactor = 70, vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);
comment on table underway.run is 'live runs; a finished one moves to finished_run';
comment on column underway.run.input_bytes is 'the size of the input as text, so that a claim can be bounded by bytes';
comment on column underway.run.rank is 'due - priority * 1 minute: the order in a lane, and the ageing of priorities';
comment on column underway.run.number is 'attempts at this step that started and ended, whatever their outcome';
comment on column underway.run.attempts is 'failures and time-outs at this step: what the retry policy counts';
comment on column underway.run.crashes is 'deaths of the process at this step: at max_crashes the run is quarantined';

create index run_lane on underway.run (queue, job, step, rank, id) where state = 'pending' and crashes = 0;
create index run_suspect on underway.run (queue, job, step, rank, id) where state = 'pending' and crashes > 0;
create index run_waiting on underway.run (due, id) where state = 'waiting';
create index run_in_progress on underway.run (id) where state = 'in_progress';
create unique index run_unique_key on underway.run (job, unique_key) where unique_key is not null;
create index run_concurrency_key on underway.run (queue, concurrency_key, rank, id)
    where state = 'waiting' and concurrency_key is not null;

create table underway.finished_run (
    id uuid primary key,
    created_at timestamptz not null,
    finished_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    scheduled_for timestamptz,
    keep interval not null,
    attempts int not null,
    crashes int not null,
    releases int not null,
    priority smallint not null,
    key_limit smallint,
    state text not null check (state in ('succeeded', 'failed', 'cancelled')),
    queue text not null,
    job text not null,
    step text not null,
    unique_key text,
    concurrency_key text,
    dead_letter text,
    error text,
    result json,
    input json
);
comment on column underway.finished_run.input is 'what the last step was given; kept for failed and cancelled runs';

create index finished_run_expires on underway.finished_run (expires_at);
create index finished_run_dead_letter on underway.finished_run (dead_letter, finished_at)
    where dead_letter is not null;

create table underway.attempt (
    run_id uuid not null,
    token bigint not null,
    number int not null,
    pid int,
    started_at timestamptz,
    finished_at timestamptz not null,
    peak_rss bigint,
    cpu_seconds real,
    step text not null,
    outcome text not null check (outcome in ('succeeded', 'failed', 'timed_out', 'crashed', 'out_of_memory', 'lost',
                                             'released', 'cancelled')),
    host text,
    error text,
    primary key (run_id, token)
);
comment on table underway.attempt is 'one row per attempt that started, written once, at its end';

-- The next two functions keep the token sequence ahead of the tokens in the rows, even if rows were copied without it.

-- ALTER SEQUENCE locks the sequence until the transaction ends, so it cannot be set back below a token drawn meanwhile.
create function underway.pass_tokens(last bigint) returns void
language plpgsql strict
set search_path = pg_catalog, pg_temp
as $$
begin
    if last <= coalesce(pg_sequence_last_value('underway.token'), 0) then
        return;
    end if;
    alter sequence underway.token no cycle;
    if last > coalesce(pg_sequence_last_value('underway.token'), 0) then
        perform setval('underway.token', last);
    end if;
end
$$;
comment on function underway.pass_tokens is 'makes the next token greater than this one';

-- Logical replication does not copy sequences, and a partial restore may not either. (A new server started at token 1
-- again, and the second attempt at a run could not be recorded, because it had the same token as the first.)
--
-- Finding the largest token would scan millions of rows. Instead, the runs in progress, the newest runs and the newest
-- attempts show whether the sequence is behind. If so, it is advanced a billion tokens past the largest one found,
-- which is more than older runs can have drawn since. A token beyond 2^62 was never drawn but written by hand; it must
-- not bring the sequence to its end.
create function underway.recover_tokens() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    known bigint;
begin
    select max(token) into known from (
        (select token from underway.run where state = 'in_progress' order by id desc limit 1000)
        union all
        (select token from underway.run order by id desc limit 1000)
        union all
        (select token from underway.attempt order by run_id desc, token desc limit 1000)
    ) newest
    where token < 4611686018427387904;
    if known > coalesce(pg_sequence_last_value('underway.token'), 0) then
        perform underway.pass_tokens(known + 1000000000);
    end if;
end
$$;
comment on function underway.recover_tokens is 'makes the next token greater than those of the newest runs and
attempts';

create table underway.job (
    name text primary key,
    step text not null,
    queue text not null,
    priority smallint not null,
    delay interval not null,
    keep interval not null,
    unique_key text,
    concurrency_key text,
    key_limit smallint,
    registered_at timestamptz not null default clock_timestamp()
);
comment on table underway.job is 'what underway.enqueue needs to know, as last registered by a supervisor or sync';

create table underway.queue (
    name text primary key,
    paused boolean not null default false,
    dead_letter text
);

create table underway.key_slot (
    queue text not null,
    key text not null,
    n smallint not null,
    run_id uuid,
    primary key (queue, key, n)
);

create table underway.schedule (
    job underway.name not null,
    name underway.name not null,
    cron text not null,
    zone text not null,
    catch_up text not null default 'last' check (catch_up in ('none', 'last', 'all')),
    overlap boolean not null default true,
    input json not null constraint schedule_input_bytes check (octet_length(input::text) <= 8388608),
    next_at underway.instant not null,
    primary key (job, name)
);
create index schedule_next on underway.schedule (next_at);

-- Labels only, rebuilt by the supervisors themselves: unlogged, so that going idle costs no flush.
create unlogged table underway.supervisor (
    id uuid primary key,
    host text not null,
    pid int not null,
    app text not null,
    manifest_hash text not null,
    started_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp(),
    idle boolean not null default false
);
comment on column underway.supervisor.idle is 'has nothing to do: an enqueue should NOTIFY';

create view underway.runs as
select id, job, step, state, queue, priority, number as attempts_made, attempts, crashes, releases, created_at,
    due, lease_until, owner, progress, input, null::json as result, null::text as error, null::timestamptz as finished_at,
    null::text as dead_letter, null::timestamptz as expires_at
from underway.run
union all
select id, job, step, state, queue, priority, null, attempts, crashes, releases, created_at,
    null, null, null, null, input, result, error, finished_at, dead_letter, expires_at
from underway.finished_run;
comment on view underway.runs is 'live and finished runs together, for people and tools';

-- Converts the jsonb argument of a public function once to the JSON text that is stored. jsonb stores 1e131071 in a few
-- bytes and prints it with 131,072 digits, so the text of a small argument may exceed even the size limit of Postgres.
create function underway.payload(given jsonb) returns json
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    spelled text;
begin
    begin
        spelled := given::text;
    exception
        when program_limit_exceeded or out_of_memory or internal_error then null;
    end;
    if spelled is null or octet_length(spelled) > 8388608 then
        raise exception 'the input has % bytes as JSON text, and at most 8388608 are allowed',
            coalesce(octet_length(spelled)::text, 'more than 1073741823')
            using errcode = 'UW005', hint = 'keep it in a table or a file store and pass its key';
    end if;
    return spelled::json;
end
$$;
comment on function underway.payload is 'the same value as JSON text of at most 8 MiB; an error if it is longer';

-- Public contract, version 1: any language enqueues in its own transaction. Returns the run's id.
create function underway.enqueue(
    job text,
    input jsonb default 'null',
    delay interval default null,
    priority int default null,
    keep interval default null
) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    defaults underway.job;
    run_id uuid;
    due timestamptz;
begin
    select * into defaults from underway.job j where j.name = enqueue.job;
    if not found then
        raise exception 'underway knows no job %', quote_literal(enqueue.job)
            using errcode = 'UW001',
            hint = 'register it with: underway sync APP (a running supervisor does so at its start)';
    end if;
    priority := coalesce(priority, defaults.priority);
    delay := coalesce(delay, defaults.delay);
    keep := coalesce(keep, defaults.keep);
    if priority not between -32768 and 32767 then
        raise exception 'priority must lie between -32768 and 32767, not %', priority using errcode = 'UW002';
    end if;
    if delay < interval '0' or keep < interval '0' then
        raise exception 'delay and keep must not be negative' using errcode = 'UW002';
    end if;
    due := clock_timestamp() + delay;
    -- A UUIDv7: 48 bits of milliseconds in front of random ones, so that new rows go to the end of the index.
    run_id := encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
        52, 1), 53, 1), 'hex')::uuid;
    insert into underway.run (id, job, step, queue, priority, keep, due, rank, state, input)
    values (run_id, enqueue.job, defaults.step, defaults.queue, priority, keep, due,
        due - priority * interval '1 minute',
        case when delay > interval '0' then 'waiting' else 'pending' end,
        coalesce(enqueue.input, 'null'));
    if exists (select from underway.supervisor s where s.idle) then
        perform pg_notify('underway', defaults.queue);
    end if;
    return run_id;
end
$$;
