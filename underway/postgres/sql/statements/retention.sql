-- expire_runs: remove a batch of finished runs whose keep has passed, and their attempts; the oldest first
--
-- The next batch may begin where this one ended, behind the dead entries that this one has left in the index.
with expired as (
    delete from underway.finished_run f
    where f.id = any(array(
        select id from underway.finished_run
        where expires_at < now() and expires_at >= to_timestamp(%(since)s)
        order by expires_at
        offset %(passing_over)s
        limit %(limit)s
        for update skip locked
    ))
    returning f.id, f.expires_at
),
attempts as (
    delete from underway.attempt a
    where a.run_id = any(array(select id from expired))
)
select date_part('epoch', expires_at) from expired;
