create or replace function underway.redrive(run_id uuid, input jsonb default null) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$ select underway.redrive_run(run_id, underway.payload(input)) $$;
comment on function underway.redrive is
    'redrives a run that has failed, if no other live run has its unique key; an error if it was cancelled';
