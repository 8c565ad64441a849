-- Inserts in the order of the ids: two calls in different orders would each wait for the other.
create or replace function underway.shutdown(supervisor uuid default null) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_notify('underway', 'shutdown');
    insert into underway.stop_request (supervisor)
    select s.id from underway.supervisor s
    where shutdown.supervisor is null or s.id = shutdown.supervisor
    order by s.id
    on conflict do nothing;
    return query select s.id from underway.supervisor s
    where shutdown.supervisor is null or s.id = shutdown.supervisor;
end
$$;
comment on function underway.shutdown is
    'asks one supervisor, or all of them, to stop as TERM does; the supervisors asked';
