-- Lets a supervisor say why its workers do not boot.
-- oldest code: 1

alter table underway.supervisor add column trouble text;
comment on column underway.supervisor.trouble is 'why its workers do not boot; null while they do';
