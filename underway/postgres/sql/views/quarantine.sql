create or replace view underway.quarantine as
select f.id, f.job, f.step, f.queue, f.crashes, f.finished_at, a.outcome, a.peak_rss, a.host, a.pid, f.error, f.input
from underway.finished_run f
left join lateral (
    select * from underway.attempt where run_id = f.id order by token desc limit 1
) a on true
where f.quarantined;
comment on view underway.quarantine is 'quarantined runs, with what is known of the last death';
