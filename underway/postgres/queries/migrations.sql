-- see_what_others_commit: in a transaction that waits for others, whatever the role's or the database's default is
set transaction isolation level read committed;

-- take_the_time_it_takes: whatever the role's or the database's transaction_timeout is, which PostgreSQL has since 17
select set_config(name, '0', true) from pg_settings where name = 'transaction_timeout';

-- lock_migrations: one migrator at a time per database, until the transaction ends
select pg_advisory_xact_lock(hashtextextended('underway.migration', 0));

-- schema_exists: whether anybody has migrated this database yet
select to_regclass('underway.migration') is not null;

-- create_schema: the schema, empty
--
-- Not if somebody has made it for us: even `if not exists` takes the right to create schemas.
do $$ begin
    if to_regnamespace('underway') is null then
        create schema underway;
    end if;
end $$;

-- create_migration_table: our own history, apart from the application's
create table if not exists underway.migration (
    version int primary key,
    name text not null,
    oldest_code int not null,
    applied_at timestamptz not null default clock_timestamp()
);

-- lock_timeout: how long a statement waits for a lock
select current_setting('lock_timeout');

-- set_lock_timeout: until the transaction ends
select set_config('lock_timeout', %(lock_timeout)s, true);

-- applied_migrations: versions that this database has, and the oldest code that each still allows
select version, oldest_code from underway.migration order by version;

-- record_migration: this version is now applied
insert into underway.migration (version, name, oldest_code) values (%(version)s, %(name)s, %(oldest_code)s);
