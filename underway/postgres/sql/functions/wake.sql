-- NOTIFY makes the transactions that enqueue commit one after another. One that no idle supervisor needs costs as much.
create or replace function underway.wake(queue text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (
        select from underway.supervisor s where s.idle and (s.queues is null or wake.queue = any(s.queues))
    ) then
        perform pg_notify('underway', wake.queue);
    end if;
end
$$;
comment on function underway.wake is 'sends a NOTIFY for a queue, if an idle supervisor serves it';
