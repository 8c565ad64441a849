-- Roles that may enqueue and ask how it went, and touch no table: underway.enqueue does its work as the schema's owner.
-- oldest code: 1

-- search_path is pinned, with pg_temp last, and nothing in it is executed dynamically: whoever calls it can bring in
-- neither tables nor functions nor operators of his own. A migration that replaces the function has to say all of it
-- again, and tests/test_roles.py sees to that.
alter function underway.enqueue(text, jsonb, interval, int, interval, text, text) security definer;

create function underway.status(run_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select r.state from underway.run r where r.id = status.run_id
    union all
    select f.state from underway.finished_run f where f.id = status.run_id
    limit 1
$$;
comment on function underway.status is 'where a run stands, for those who know its id; null if there is no such run';

-- Now that these need no rights of the caller, being let into the schema must not be enough. Those that could insert
-- runs until now go on as before.
revoke execute on function underway.enqueue(text, jsonb, interval, int, interval, text, text) from public;
revoke execute on function underway.status(uuid) from public;
do $$
declare
    grantee text;
begin
    for grantee in
        select distinct case entry.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(entry.grantee)) end
        from (
            select relacl as acl from pg_class where oid = 'underway.run'::regclass
            union all
            select attacl from pg_attribute where attrelid = 'underway.run'::regclass
        ) granted, aclexplode(granted.acl) entry
        where entry.privilege_type = 'INSERT'
    loop
        execute format(
            'grant execute on function underway.enqueue(text, jsonb, interval, int, interval, text, text) to %s', grantee
        );
        execute format('grant execute on function underway.status(uuid) to %s', grantee);
    end loop;
end
$$;
