-- A run in progress is only marked. The mark closes the fence, so from that commit on nothing of the attempt can be
-- written. Its supervisor is woken, stops the step, and closes the run when nothing of the step is left.
create or replace function underway.cancel_runs(run_ids uuid[]) returns int
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    closed int;
    requested int;
    locked_keys text[];
begin
    -- Claims, commits and the reaper that have locked a run come first, and the state that they leave counts.
    perform from underway.run r where r.id = any(run_ids) order by r.id for update;
    with ended as (
        delete from underway.run r
        where r.id = any(run_ids) and r.state in ('pending', 'waiting')
        returning r.*, 'cancelled' as final, 'cancelled' as outcome, r.attempts as final_attempts,
            r.crashes as final_crashes, 'cancelled' as error, null::text as payload
    ),
    filed as (
        :file_finished_runs
        on conflict (id) do nothing
    )
    select count(*), (
        select underway.grant_keys(array_agg(queue), array_agg(concurrency_key)) from ended where holds_key
    ) into closed, locked_keys from ended;
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
