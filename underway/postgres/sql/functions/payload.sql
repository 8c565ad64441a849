-- Converts the jsonb argument of a public function once to the JSON text that is stored. jsonb stores 1e131071 in a few
-- bytes and prints it with 131,072 digits, so the text of a small argument may exceed even the size limit of Postgres.
create or replace function underway.payload(given jsonb) returns json
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    printed text;
begin
    begin
        printed := given::text;
    exception
        when program_limit_exceeded or out_of_memory or internal_error then null;
    end;
    if printed is null or octet_length(printed) > 8388608 then
        raise exception 'the input has % bytes as JSON text, and at most 8388608 are allowed',
            coalesce(octet_length(printed)::text, 'more than 1073741823')
            using errcode = 'UW005', hint = 'keep it in a table or a file store and pass its key';
    end if;
    return printed::json;
end
$$;
comment on function underway.payload is 'the same value as JSON text of at most 8 MiB; an error if it is longer';
