-- limits_transactions: whether a role or a database has a transaction_timeout, which PostgreSQL has since 17
select coalesce(current_setting('transaction_timeout', true), '0') <> '0' as limited;

-- set_deadline: limit the statements of this transaction, and the idle time between them while rows are being
-- transferred
select set_config('statement_timeout', %(deadline)s, true),
    set_config('idle_in_transaction_session_timeout', %(deadline)s, true);

-- register_supervisor: write the row of this supervisor; only a label, nothing depends on it
insert into underway.supervisor (id, host, pid, app, lanes, trouble)
values (%(id)s, %(host)s, %(pid)s, %(app)s, %(lanes)s::text::jsonb, %(trouble)s)
on conflict (id) do update set seen_at = clock_timestamp(), idle = false, lanes = excluded.lanes,
    trouble = excluded.trouble;

-- still_here: record every few seconds that this supervisor is alive, and return whether its row still exists
with seen as (
    update underway.supervisor
    set seen_at = clock_timestamp()
    where id = any(array(select id from underway.supervisor where id = %(id)s for no key update skip locked))
)
select exists (select from underway.supervisor where id = %(id)s) as known;

-- set_idle: record whether this supervisor wants a NOTIFY for new runs, and for which queues
update underway.supervisor
set idle = %(idle)s, queues = %(queues)s::text[], seen_at = clock_timestamp()
where id = %(id)s;

-- stop_requested: whether this supervisor was asked to stop
select exists (select from underway.stop_request where supervisor = %(id)s) as requested;

-- deregister_supervisor: remove the row of this supervisor
with answered as (
    delete from underway.stop_request where supervisor = %(id)s
)
delete from underway.supervisor where id = %(id)s;

-- forget_supervisors: remove the rows of supervisors that were not seen for ten minutes
with forgotten as (
    delete from underway.supervisor s
    where s.id = any(array(
        select id from underway.supervisor where seen_at < now() - interval '10 minutes' for update skip locked
    ))
    returning s.id
)
delete from underway.stop_request r
where r.supervisor = any(array(select id from forgotten));

-- register_queue: write what the app declares of a queue; never waits for a transaction that pauses it
with known as (
    select name, dead_letter from underway.queue where name = %(name)s
),
changed as (
    update underway.queue q
    set dead_letter = %(dead_letter)s
    where q.name = any(array(
        select name from underway.queue
        where name = %(name)s and dead_letter is distinct from %(dead_letter)s::text
        for no key update skip locked
    ))
)
insert into underway.queue (name, dead_letter)
select %(name)s, %(dead_letter)s
where not exists (select from known)
on conflict (name) do nothing;

-- register_job: write what underway.enqueue needs to know of a job
--
-- Every supervisor does so each minute, nearly always without a change. Then the row is not even locked; otherwise the
-- statement would wait for another transaction's lock, and the commits on its connection with it.
insert into underway.job (name, step, queue, priority, delay, keep, unique_key, concurrency_key, concurrency_limit)
select *
from (
    values (%(name)s::text, %(step)s::text, %(queue)s::text, %(priority)s::smallint, %(delay)s::interval,
        %(keep)s::interval, %(unique_key)s::text, %(concurrency_key)s::text, %(concurrency_limit)s::smallint)
) as given
where not exists (
    select
    from underway.job j
    where (j.name, j.step, j.queue, j.priority, j.delay, j.keep, j.unique_key, j.concurrency_key, j.concurrency_limit)
        is not distinct from given
)
on conflict (name) do update
set step = excluded.step, queue = excluded.queue, priority = excluded.priority, delay = excluded.delay,
    keep = excluded.keep, unique_key = excluded.unique_key, concurrency_key = excluded.concurrency_key,
    concurrency_limit = excluded.concurrency_limit, registered_at = clock_timestamp();

-- long_stranded_lanes: lanes that no living supervisor serves, with runs that have been pending for a minute
select queue, job, step
from underway.stranded_lane
where since < now() - interval '1 minute'
order by queue, job, step;
