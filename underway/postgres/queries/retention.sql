-- expire_runs: remove finished runs whose keep has passed, and their attempts; the oldest first, and so many at most
with expired as (
    delete from underway.finished_run f
    where f.id = any(array(
        select id from underway.finished_run
        where expires_at < now()
        order by expires_at
        limit %(limit)s
        for update skip locked
    ))
    returning f.id
),
attempts as (
    delete from underway.attempt a
    where a.run_id = any(array(select id from expired))
)
select id from expired;
