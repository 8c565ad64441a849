"""The whole schema as text: tables, indexes, views, functions and grants, as the catalog of Postgres has them."""

import textwrap
from hashlib import sha256
from typing import Any, LiteralString

import psycopg

_SCHEMA = "'underway'::regnamespace"
_DOMAINS: LiteralString = f"""
    select t.typname, format_type(t.typbasetype, t.typtypmod), pg_get_constraintdef(c.oid)
    from pg_type t left join pg_constraint c on c.contypid = t.oid and c.contype = 'c'
    where t.typnamespace = {_SCHEMA} and t.typtype = 'd' order by 1"""
_SEQUENCES: LiteralString = f"""
    select c.relname, format_type(s.seqtypid, null) from pg_sequence s join pg_class c on c.oid = s.seqrelid
    where c.relnamespace = {_SCHEMA} order by 1"""
_RELATIONS: LiteralString = f"""
    select c.oid, c.relname, c.relpersistence = 'u', array_to_string(c.reloptions, ', '),
        obj_description(c.oid, 'pg_class')
    from pg_class c where c.relnamespace = {_SCHEMA} and c.relkind = %s order by 2"""
_COLUMNS: LiteralString = """
    select a.attname, format_type(a.atttypid, a.atttypmod), case when a.attnotnull then ' not null' else '' end,
        case when a.attgenerated = 's' then ' generated always as (' || pg_get_expr(d.adbin, d.adrelid) || ')'
            when d.oid is not null then ' default ' || pg_get_expr(d.adbin, d.adrelid) else '' end
    from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = %s and a.attnum > 0 and not a.attisdropped order by a.attnum"""
_CONSTRAINTS: LiteralString = """
    select conname, pg_get_constraintdef(oid, true) from pg_constraint
    where conrelid = %s and contype <> 'n' order by contype desc, conname"""
_INDEXES: LiteralString = """
    select pg_get_indexdef(indexrelid) from pg_index where indrelid = %s and not indisprimary
    order by pg_get_indexdef(indexrelid) collate "C" """
_FUNCTIONS: LiteralString = f"""
    select p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), l.lanname,
        case p.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end
            || case when p.proisstrict then ' strict' else '' end
            || case when p.prosecdef then ', security definer' else '' end,
        array_to_string(p.proconfig, ', '), coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)
    from pg_proc p join pg_language l on l.oid = p.prolang where p.pronamespace = {_SCHEMA} order by 1"""
_GRANTS: LiteralString = f"""
    select kind || ' ' || name, coalesce(nullif(grantee, 0)::regrole::text, 'public'),
        string_agg(lower(privilege_type), ', ' order by privilege_type)
    from (
        select 'function' as kind, proname as name, coalesce(proacl, acldefault('f', proowner)) as acl,
            proowner as owner
        from pg_proc where pronamespace = {_SCHEMA}
        union all
        select 'table', relname, coalesce(relacl, acldefault('r', relowner)), relowner
        from pg_class where relnamespace = {_SCHEMA} and relkind in ('r', 'v')
        union all
        select 'sequence', relname, coalesce(relacl, acldefault('s', relowner)), relowner
        from pg_class where relnamespace = {_SCHEMA} and relkind = 'S'
    ) granted, aclexplode(acl) entry
    where entry.grantee <> owner group by kind, name, entry.grantee
    order by kind collate "C", name, entry.grantee"""


def describe(connection: psycopg.Connection[Any]) -> str:
    def rows(query: LiteralString, *parameters: Any) -> list[tuple[Any, ...]]:
        return connection.execute(query, parameters).fetchall()

    connection.execute("set timezone = 'UTC'")
    parts = ["# Domains\n"]
    parts += [f"{name}  {base}  {constraint}" for name, base, constraint in rows(_DOMAINS)]
    parts += ["\n# Sequences\n", *(f"{name}  {kind}" for name, kind in rows(_SEQUENCES))]
    parts.append("\n# Tables")
    for oid, name, unlogged, options, comment in rows(_RELATIONS, "r"):
        parts.append(f"\n{name}{'  unlogged' if unlogged else ''}" + (f"  -- {comment}" if comment else ""))
        parts += [f"    with {options}"] if options else []
        parts += [f"    {column}  {kind}{null}{default}" for column, kind, null, default in rows(_COLUMNS, oid)]
        parts += [f"    constraint {known}: {_joined(definition)}" for known, definition in rows(_CONSTRAINTS, oid)]
        parts += [f"    {definition.replace(' USING btree', '')}" for (definition,) in rows(_INDEXES, oid)]
    parts.append("\n# Views")
    for oid, name, _, _, comment in rows(_RELATIONS, "v"):
        parts.append(f"\n{name}  -- {comment}")
        parts += [f"    {column}  {kind}" for column, kind, *_ in rows(_COLUMNS, oid)]
        (definition,) = rows("select pg_get_viewdef(%s::oid)", oid)[0]
        parts.append(f"    definition {_hash(definition)}")
    parts.append("\n# Functions")
    for name, arguments, result, language, traits, settings, body in rows(_FUNCTIONS):
        parts.append(f"\n{name}")
        parts += textwrap.wrap(f"({arguments}) -> {result}", 116, initial_indent="    ", subsequent_indent="        ")
        parts.append(f"    {language}, {traits}" + (f", {settings}" if settings else ""))
        parts.append(f"    body {_hash(body)}")
    parts.append("\n# Grants to others than the owner\n")
    parts += [f"{name}: {privileges} to {grantee}" for name, grantee, privileges in rows(_GRANTS)]
    return "\n".join(parts) + "\n"


def _joined(text: str) -> str:
    return " ".join(text.split())


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
