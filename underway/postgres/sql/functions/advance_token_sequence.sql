-- Keeps the token sequence ahead of the tokens in the rows, even if rows were copied without it.
--
-- ALTER SEQUENCE locks the sequence until the transaction ends, so it cannot be set back below a token drawn meanwhile.
create or replace function underway.advance_token_sequence(last bigint) returns void
language plpgsql strict
set search_path = pg_catalog, pg_temp
as $$
begin
    if last <= coalesce(pg_sequence_last_value('underway.token'), 0) then
        return;
    end if;
    alter sequence underway.token no cycle;
    if last > coalesce(pg_sequence_last_value('underway.token'), 0) then
        perform setval('underway.token', last);
    end if;
end
$$;
comment on function underway.advance_token_sequence is 'makes the next token greater than this one';
