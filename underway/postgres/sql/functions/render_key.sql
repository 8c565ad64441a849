-- {field} and {outer.field} stand for strings, integers and booleans of the input. An integer must be written with
-- digits only: 1.0 and 1e3 are rejected. underway/keys.py does the same in Python.
create or replace function underway.render_key(template text, input json) returns text
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    rendered text := '';
    rest text := template;
    field text;
    name text;
    leaf json;
begin
    if template !~ '^([^{}]|\{[^{}.]+(\.[^{}.]+)*\})+$' then
        raise exception 'a key is a text in which {field} stands for a field of the input, not %',
            quote_literal(template) using errcode = 'UW002';
    end if;
    while strpos(rest, '{') > 0 loop
        rendered := rendered || split_part(rest, '{', 1);
        field := split_part(split_part(rest, '{', 2), '}', 1);
        rest := substr(rest, strpos(rest, '}') + 1);
        leaf := input;
        foreach name in array string_to_array(field, '.') loop
            leaf := case when json_typeof(leaf) = 'object' then leaf -> name end;
        end loop;
        if leaf is null then
            raise exception 'the key % needs the field %, which the input does not have',
                quote_literal(template), field using errcode = 'UW003';
        end if;
        if json_typeof(leaf) not in ('string', 'boolean', 'number')
            or (json_typeof(leaf) = 'number' and leaf #>> '{}' !~ '^-?[0-9]+$') then
            raise exception 'the key % takes a string, an integer or a boolean from the field %, not %',
                quote_literal(template), field, left(leaf::text, 100) using errcode = 'UW003';
        end if;
        rendered := rendered || (leaf #>> '{}');
    end loop;
    rendered := rendered || rest;
    if length(rendered) not between 1 and 400 then
        raise exception 'the key % has % characters here, and 1 to 400 are allowed',
            quote_literal(template), length(rendered) using errcode = 'UW003';
    end if;
    return rendered;
end
$$;
comment on function underway.render_key is 'the key that a template gives for an input; an error if it gives none';
