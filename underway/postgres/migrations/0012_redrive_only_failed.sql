-- A cancel is final for whoever redrives by many ids too, as it has been by one since migration 6.
-- oldest code: 1

-- Code that is older asks for the runs of a label, or for one run, and gets what it gets for any run that has not
-- failed. All else of the function stays as it is.
do $$
begin
    execute replace(pg_get_functiondef('underway.redrive_runs(uuid[], jsonb)'::regprocedure),
        'f.state in (''failed'', ''cancelled'')', 'f.state = ''failed''');
end
$$;
comment on function underway.redrive_runs is
    'lets failed runs go on at their last step, counters at zero; how many, all others are passed over';
