-- The tables of underway, with their types, indexes and constraints.
-- oldest code: 1

create sequence underway.token as bigint;
comment on sequence underway.token is 'fencing tokens: grows with each claim; a token is never reused';

-- The ranges of a run's values. The tables reject values outside of them, because one row with an impossible value
-- makes a statement fail for all other rows too. (A due time of 4714 BC from which a priority was subtracted, or a keep
-- of 178 million years, ended every supervisor that read the row.) These are domains, not table constraints: a domain
-- is checked when its value is written, and adds no cost to a claim.
create domain underway.name_text as text constraint name_text_length check (length(value) between 1 and 200);
create domain underway.key_text as text constraint key_text_length check (length(value) between 1 and 400);
create domain underway.limit_count as smallint constraint limit_count_positive check (value >= 1);
create domain underway.run_instant as timestamptz constraint run_instant_range
    check (value between '1000-01-01 00:00+00' and '9999-12-31 00:00+00');
-- due_at - priority * 1 minute: at most 23 days outside the range of due_at.
create domain underway.sort_instant as timestamptz constraint sort_instant_range
    check (value between '0999-11-01 00:00+00' and '10000-03-01 00:00+00');
-- Postgres compares intervals as if a month had 30 days. Parts that cancel out, such as '292000 years -105110000 days',
-- overflow when they are added to an instant, so each part is limited too.
create domain underway.run_interval as interval constraint run_interval_range
    check (value between '0' and '365000 days'
        and abs(date_part('year', value)) <= 2000 and abs(date_part('day', value)) <= 730000);
-- Well below the largest int4, because statements add 1.
create domain underway.counter as int constraint counter_range check (value between 0 and 2000000000);

-- Payloads are json, not jsonb: jsonb expands every number, so 8 MiB of 1e308 came back as 357 MB.
--
-- The table holds live runs only. fillfactor leaves room for the new row version of a renewal on the same page. No
-- index may contain lease_expires_at, or no renewal would be a heap-only update. Autovacuum runs often, because the
-- table is small and its rows turn over completely.
create table underway.run (
    id uuid primary key,
    token bigint not null default 0,
    created_at underway.run_instant not null default clock_timestamp(),
    due_at underway.run_instant,
    rank underway.sort_instant,
    lease_expires_at underway.run_instant,
    scheduled_at underway.run_instant,
    owner uuid,
    keep underway.run_interval not null,
    attempt_number underway.counter not null default 0,
    attempts underway.counter not null default 0,
    crashes underway.counter not null default 0,
    releases underway.counter not null default 0,
    max_crashes underway.counter not null default 3,
    priority smallint not null default 0,
    concurrency_limit underway.limit_count,
    holds_key boolean not null default false,
    cancel_requested boolean not null default false,
    state text not null,
    queue underway.name_text not null,
    job underway.name_text not null,
    step underway.name_text not null,
    schedule underway.name_text,
    unique_key underway.key_text,
    concurrency_key underway.key_text,
    progress json,
    input json not null,
    input_bytes int not null generated always as (octet_length(input::text)) stored
        constraint run_input_bytes check (input_bytes <= 8388608),
    -- A run in progress always has an owner and a lease; otherwise the reaper could never take it back. A run with a
    -- key is pending only while it holds one of the key's slots. Only a run that waits for a key may lack its due time
    -- or its rank, and only one of them; otherwise no supervisor would ever find it.
    constraint run_state check (
        case state
            when 'pending' then owner is null and (concurrency_key is null or holds_key)
                and due_at is not null and rank is not null
            when 'waiting' then owner is null
                and case when concurrency_key is null or holds_key then due_at is not null and rank is not null
                    else due_at is not null or rank is not null end
            when 'in_progress' then owner is not null and lease_expires_at is not null
                and (concurrency_key is null or holds_key) and due_at is not null and rank is not null
            else false
        end
    )
) with (
    fillfactor = 70, vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);
comment on table underway.run is 'live runs; a finished run moves to finished_run';
comment on column underway.run.due_at is
    'when a promoter looks at a waiting run; null in the line for a key, because the key will be passed on to the run';
comment on column underway.run.rank is
    'due_at - priority * 1 minute: the order in a lane, and in the line for a key; null until it joins that line';
comment on column underway.run.attempt_number is 'attempts at this step that started and ended, with any outcome';
comment on column underway.run.attempts is 'failures and timeouts at this step: what the retry policy counts';
comment on column underway.run.crashes is 'deaths of the process at this step: at max_crashes the run is quarantined';
comment on column underway.run.holds_key is
    'has one of the concurrency_limit slots of (queue, concurrency_key): from pending on, through retries and crashes';
comment on column underway.run.schedule is 'the name of the schedule, of the same job, that enqueued the run';
comment on column underway.run.input_bytes is 'the size of the input as text, so that a claim can be bounded by bytes';

create index run_lane on underway.run (queue, job, step, rank, id) where state = 'pending' and crashes = 0;
create index run_suspect on underway.run (queue, job, step, rank, id) where state = 'pending' and crashes > 0;
create index run_waiting on underway.run (due_at, id) where state = 'waiting' and due_at is not null;
create index run_in_progress on underway.run (id) where state = 'in_progress';
-- Without the owner: each claim and each hand-over would write into this index too.
create index run_cancel_requested on underway.run (id) where cancel_requested;
create unique index run_unique_key on underway.run (job, unique_key) where unique_key is not null;
create index run_concurrency_key on underway.run (queue, concurrency_key, rank, id)
    where state = 'waiting' and concurrency_key is not null and rank is not null;
create index run_holds_key on underway.run (queue, concurrency_key) where holds_key;
create index run_key_due on underway.run (due_at, id)
    where state = 'waiting' and concurrency_key is not null and not holds_key and due_at is not null;
create index run_schedule on underway.run (job, schedule) where schedule is not null;

create table underway.finished_run (
    id uuid primary key,
    created_at timestamptz not null,
    finished_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    scheduled_at timestamptz,
    keep interval not null,
    attempts int not null,
    crashes int not null,
    releases int not null,
    priority smallint not null,
    concurrency_limit smallint,
    quarantined boolean not null default false,
    state text not null constraint finished_run_state check (state in ('succeeded', 'failed', 'cancelled')),
    queue text not null,
    job text not null,
    step text not null,
    schedule text,
    unique_key text,
    concurrency_key text,
    dead_letter text,
    error text,
    result json,
    input json
);
comment on table underway.finished_run is 'runs that have ended, until expires_at';
comment on column underway.finished_run.quarantined is 'failed by the death of its process, max_crashes times';
comment on column underway.finished_run.schedule is 'as in run: a redriven run belongs to its schedule again';
comment on column underway.finished_run.dead_letter is 'the label of a failed run that needs attention';
comment on column underway.finished_run.input is 'the input of the last step; kept for failed and cancelled runs';

create index finished_run_expires on underway.finished_run (expires_at);
create index finished_run_dead_letter on underway.finished_run (dead_letter, finished_at)
    where dead_letter is not null;
create index finished_run_unsuccessful on underway.finished_run (state, id) where state <> 'succeeded';
create index finished_run_quarantined on underway.finished_run (finished_at) where quarantined;

create table underway.attempt (
    run_id uuid not null,
    token bigint not null,
    attempt_number int not null,
    pid int,
    started_at timestamptz,
    finished_at timestamptz not null,
    peak_rss bigint,
    cpu_seconds real,
    step text not null,
    outcome text not null constraint attempt_outcome check (outcome in ('succeeded', 'failed', 'timed_out', 'crashed',
        'out_of_memory', 'lost', 'released', 'cancelled')),
    host text,
    error text,
    primary key (run_id, token)
);
comment on table underway.attempt is 'one row per attempt that started, written once, when it ends';

create table underway.job (
    name text primary key,
    step text not null,
    queue text not null,
    priority smallint not null,
    delay interval not null,
    keep interval not null,
    unique_key text,
    concurrency_key text,
    concurrency_limit smallint,
    registered_at timestamptz not null default clock_timestamp()
);
comment on table underway.job is 'what underway.enqueue needs to know of a job, as registered by a supervisor or sync';

create table underway.queue (
    name text primary key,
    paused boolean not null default false,
    dead_letter text
);
comment on table underway.queue is 'what the app declares of a queue, and whether it is paused';

create index queue_paused on underway.queue (name) where paused;

create table underway.schedule (
    job underway.name_text not null,
    name underway.name_text not null,
    cron text not null,
    zone text not null,
    catch_up text not null default 'last' constraint schedule_catch_up check (catch_up in ('none', 'last', 'all')),
    overlap boolean not null default true,
    input json not null constraint schedule_input_bytes check (octet_length(input::text) <= 8388608),
    next_at underway.run_instant not null,
    primary key (job, name)
);
comment on table underway.schedule is 'cron lines that enqueue runs; next_at is the slot that a schedule waits for';

create index schedule_next on underway.schedule (next_at);

-- Labels only, which supervisors write again after a crash of the server. Unlogged, so that going idle costs no flush.
create unlogged table underway.supervisor (
    id uuid primary key,
    host text not null,
    pid int not null,
    app text not null,
    started_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp(),
    idle boolean not null default false,
    queues text[],
    lanes jsonb not null default '[]',
    trouble text
);
comment on table underway.supervisor is 'the supervisors that serve this database, for people and for underway.wake';
comment on column underway.supervisor.idle is 'has nothing to do: an enqueue should NOTIFY';
comment on column underway.supervisor.queues is 'while idle: the queues for which it wants a NOTIFY; null: all queues';
comment on column underway.supervisor.lanes is 'the lanes that it serves: [{queue, job, step}]';
comment on column underway.supervisor.trouble is 'why its workers do not boot; null while they do';

-- A table of its own: a request to stop must not lock the row of a supervisor.
create unlogged table underway.stop_request (supervisor uuid primary key);
comment on table underway.stop_request is 'supervisors that were asked to stop';
