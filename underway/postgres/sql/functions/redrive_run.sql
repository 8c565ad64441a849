-- A cancel is final. Only this function checks that, because no cancelled run has a dead-letter label.
create or replace function underway.redrive_run(run_id uuid, input json) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    ended text;
begin
    -- Locked, so that no other transaction can redrive and cancel the run between this check and our redrive.
    select f.state into ended from underway.finished_run f where f.id = run_id for update;
    if ended = 'cancelled' then
        raise exception 'run % was cancelled, and a cancel is final', run_id
            using errcode = 'UW004', hint = 'enqueue its input again';
    end if;
    return underway.redrive_runs(array[run_id], input) = 1;
end
$$;
comment on function underway.redrive_run is
    'used by the Python client: takes json, so that the input is stored as it was written';
