create or replace function underway.discard(run_id uuid) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    with discarded as (
        update underway.finished_run f set dead_letter = null
        where f.id = run_id and f.dead_letter is not null
        returning 1
    )
    select exists (select from discarded)
$$;
comment on function underway.discard is
    'removes the label of a run, which stays readable as failed; false if it has none';
