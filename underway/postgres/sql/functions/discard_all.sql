-- Locks in the order of the ids, as underway.redrive_runs does.
create or replace function underway.discard_all(dead_letter text) returns int
language sql
set search_path = pg_catalog, pg_temp
as $$
    with labelled as materialized (
        select f.id from underway.finished_run f
        where f.dead_letter = discard_all.dead_letter
        order by f.id
        for update
    ),
    discarded as (
        update underway.finished_run f set dead_letter = null
        where f.id in (select id from labelled) and f.dead_letter = discard_all.dead_letter
        returning 1
    )
    select count(*)::int from discarded
$$;
comment on function underway.discard_all is 'discards all runs with this label; how many';
