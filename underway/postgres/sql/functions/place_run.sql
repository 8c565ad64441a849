-- Where a run is put when it is enqueued, retried, handed over or redriven. This is the only definition of the rule.
--
-- A run with a delay waits until it is due. A run that needs a concurrency key waits in line for the key. With a delay
-- it has no rank, because it joins the line only when it is due; see underway.grant_keys.
--
-- rank is the order in a lane and in the line for a key: one unit of priority is worth a minute.
--
-- Postgres inlines the function into the statements that use it, at no cost, as long as no argument is volatile: pass
-- statement_timestamp() or a variable, not clock_timestamp().
create or replace function underway.place_run(placed_at timestamptz, delay interval, priority int, needs_key boolean)
returns table (state text, due_at timestamptz, rank timestamptz)
language sql stable
begin atomic
    select
        case when delay > interval '0' or needs_key then 'waiting' else 'pending' end,
        placed_at + delay,
        case when delay > interval '0' and needs_key then null
            else placed_at + delay - priority * interval '1 minute' end;
end;
comment on function underway.place_run is 'the state, due time and rank of a run from this instant on';
