-- Runs in progress are only marked. The mark shuts the fence, so from that commit on nothing of the attempt can be
-- written; its supervisor is woken, stops the step, and closes the run when nothing of it runs any more.
create or replace function underway.cancel_runs(run_ids uuid[]) returns int
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    closed int;
    requested int;
    locked_keys text[];
begin
    -- Who claims, commits or takes back one of them at this moment comes first, and what is found then stays.
    perform from underway.run r where r.id = any(run_ids) order by r.id for update;
    with gone as (
        delete from underway.run r
        where r.id = any(run_ids) and r.state in ('pending', 'waiting')
        returning r.*
    ),
    filed as (
        insert into underway.finished_run (id, created_at, expires_at, scheduled_for, keep, attempts, crashes, releases,
            priority, key_limit, state, queue, job, step, schedule, unique_key, concurrency_key, error, input)
        select id, created_at, now() + keep, scheduled_for, keep, attempts, crashes, releases, priority, key_limit,
            'cancelled', queue, job, step, schedule, unique_key, concurrency_key, 'cancelled', input
        from gone
        on conflict (id) do nothing
    )
    select count(*), (
        select underway.pass_keys(array_agg(queue), array_agg(concurrency_key)) from gone where holds_key
    ) into closed, locked_keys from gone;
    update underway.run r
    set cancel_requested = true
    where r.id = any(run_ids) and r.state = 'in_progress' and not r.cancel_requested;
    get diagnostics requested = row_count;
    if requested > 0 then
        perform pg_notify('underway', 'cancel');
    end if;
    return closed + requested;
end
$$;
comment on function underway.cancel_runs is 'cancels live runs; how many of them had not been cancelled before';
