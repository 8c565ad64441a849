-- register_supervisor: say that this supervisor is here; labels only, nothing depends on them
insert into underway.supervisor (id, host, pid, app, manifest_hash)
values (%(id)s, %(host)s, %(pid)s, %(app)s, %(manifest_hash)s)
on conflict (id) do update set seen_at = clock_timestamp(), idle = false;

-- set_idle: tell those who enqueue whether a NOTIFY is wanted
update underway.supervisor
set idle = %(idle)s, seen_at = clock_timestamp()
where id = %(id)s;

-- deregister_supervisor: leaving
delete from underway.supervisor where id = %(id)s;

-- forget_supervisors: drop the labels of supervisors not seen for ten minutes
delete from underway.supervisor s
where s.id = any(array(
    select id from underway.supervisor where seen_at < now() - interval '10 minutes' for update skip locked
));

-- register_job: what underway.enqueue needs to know of a job
insert into underway.job (name, step, queue, priority, delay, keep, unique_key, concurrency_key, key_limit)
values (%(name)s, %(step)s, %(queue)s, %(priority)s, %(delay)s, %(keep)s, %(unique_key)s, %(concurrency_key)s,
    %(key_limit)s)
on conflict (name) do update
set step = excluded.step, queue = excluded.queue, priority = excluded.priority, delay = excluded.delay,
    keep = excluded.keep, unique_key = excluded.unique_key, concurrency_key = excluded.concurrency_key,
    key_limit = excluded.key_limit, registered_at = clock_timestamp()
where (job.step, job.queue, job.priority, job.delay, job.keep, job.unique_key, job.concurrency_key, job.key_limit)
    is distinct from (excluded.step, excluded.queue, excluded.priority, excluded.delay, excluded.keep,
        excluded.unique_key, excluded.concurrency_key, excluded.key_limit);
