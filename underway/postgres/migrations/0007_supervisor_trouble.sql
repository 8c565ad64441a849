-- oldest code: 1
--
-- A supervisor says here why its workers do not boot.

alter table underway.supervisor add column trouble text;
comment on column underway.supervisor.trouble is 'why its workers do not boot; null while they do';
