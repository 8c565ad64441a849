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
comment on function underway.wake is 'NOTIFY for a queue, if a supervisor that has nothing to do serves it';
