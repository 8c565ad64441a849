-- advance: let time pass, for all that waits for an instant
with runs as (
    update underway.run
    set due = case when due < '9999-12-31 00:00+00' then due - %(delta)s::interval else due end,
        rank = rank - %(delta)s::interval, lease_until = lease_until - %(delta)s::interval
),
schedules as (
    update underway.schedule set next_at = next_at - %(delta)s::interval
)
update underway.finished_run set expires_at = expires_at - %(delta)s::interval;

-- end_sessions: end all sessions in a database; a row for each that there still is
select pg_terminate_backend(pid) from pg_stat_activity where datname = %(database)s;
