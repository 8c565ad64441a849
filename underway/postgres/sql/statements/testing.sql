-- advance: let time pass, for everything that waits for an instant
with runs as (
    update underway.run
    set due_at = due_at - %(delta)s::interval, rank = rank - %(delta)s::interval,
        lease_expires_at = lease_expires_at - %(delta)s::interval
),
schedules as (
    update underway.schedule set next_at = next_at - %(delta)s::interval
)
update underway.finished_run set expires_at = expires_at - %(delta)s::interval;

-- end_sessions: end all sessions in a database; returns a row for each session that was left
select pg_terminate_backend(pid) from pg_stat_activity where datname = %(database)s;
