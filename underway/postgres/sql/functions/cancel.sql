create or replace function underway.cancel(run_id uuid) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$ select underway.cancel_runs(array[run_id]) = 1 $$;
comment on function underway.cancel is 'cancels a run; false if it was finished, cancelled before, or never there';
