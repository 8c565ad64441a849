-- use_read_committed: see what others commit while this transaction waits for them, whatever the default level is
set transaction isolation level read committed;

-- disable_transaction_timeout: whatever the default of the role or database is; PostgreSQL has it since 17
select set_config(name, '0', true) from pg_settings where name = 'transaction_timeout';

-- lock_migrations: one migrator at a time per database, until the transaction ends
select pg_advisory_xact_lock(hashtextextended('underway.migration', 0));

-- schema_exists: whether this database was ever migrated
select to_regclass('underway.migration') is not null;

-- create_schema: the schema, empty
--
-- Not if an administrator has created it for us: even `if not exists` requires the right to create schemas.
do $$ begin
    if to_regnamespace('underway') is null then
        create schema underway;
    end if;
end $$;

-- create_migration_table: the history of the schema, apart from the application's own
create table underway.migration (
    version int primary key,
    name text not null,
    oldest_code int not null,
    applied_at timestamptz not null default clock_timestamp(),
    online_at timestamptz
);

-- comment_on_migration_table: what its columns mean
comment on table underway.migration is 'the numbered migrations that are applied';
comment on column underway.migration.oldest_code is 'the lowest migration that code must know to work with this schema';
comment on column underway.migration.online_at is 'when its online phase was completed; null while that is to be done';

-- create_definition_table: which functions and views are applied, by the hash of their text
create table underway.definition (name text primary key, hash text not null);

-- comment_on_definition_table: what it is for
comment on table underway.definition is 'the functions and views that are applied, with the hash of their text';

-- lock_timeout: how long a statement waits for a lock
select current_setting('lock_timeout');

-- set_lock_timeout: until the transaction ends
select set_config('lock_timeout', %(lock_timeout)s, true);

-- applied_migrations: versions that this database has, and the oldest code that each still allows
select version, oldest_code from underway.migration order by version;

-- record_migration: this version is now applied
insert into underway.migration (version, name, oldest_code, online_at)
values (%(version)s, %(name)s, %(oldest_code)s, case when %(complete)s then clock_timestamp() end);

-- applied_definitions: the functions and views that this database has
select name, hash from underway.definition;

-- record_definition: this text of a function or view is now applied
insert into underway.definition (name, hash) values (%(name)s, %(hash)s)
on conflict (name) do update set hash = excluded.hash;

-- pending_online: the migrations whose online phase is not complete
select version from underway.migration where online_at is null order by version;

-- record_online: the online phase of this version is complete
update underway.migration set online_at = clock_timestamp() where version = %(version)s;

-- try_online_lock: one session at a time per database; true if it is ours
--
-- Never waited for inside a statement: `create index concurrently` waits for all transactions that began earlier, and
-- would wait for the statement that waits for this lock.
select pg_try_advisory_lock(hashtextextended('underway.online', 0));

-- release_online_lock: the next session may go on
select pg_advisory_unlock(hashtextextended('underway.online', 0));

-- session_timeouts: the limits of this session's statements
select current_setting('statement_timeout'), current_setting('lock_timeout');

-- set_session_timeouts: until they are set again
select set_config('statement_timeout', %(statement_timeout)s, false),
    set_config('lock_timeout', %(lock_timeout)s, false);

-- index_is_valid: whether this index is complete; null if there is none of this name
select (select indisvalid from pg_index where indexrelid = to_regclass(%(name)s));
