-- Logical replication does not copy sequences, and a partial restore may not either. (A new server started at token 1
-- again, and the second attempt at a run could not be recorded, because it had the same token as the first.)
--
-- Finding the largest token would scan millions of rows. Instead, the runs in progress, the newest runs and the newest
-- attempts show whether the sequence is behind. If so, it is advanced a billion tokens past the largest one found,
-- which is more than older runs can have drawn since. A token beyond 2^62 was never drawn but written by hand; it must
-- not bring the sequence to its end.
create or replace function underway.recover_tokens() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    known bigint;
begin
    select max(token) into known from (
        (select token from underway.run where state = 'in_progress' order by id desc limit 1000)
        union all
        (select token from underway.run order by id desc limit 1000)
        union all
        (select token from underway.attempt order by run_id desc, token desc limit 1000)
    ) newest
    where token < 4611686018427387904;
    if known > coalesce(pg_sequence_last_value('underway.token'), 0) then
        perform underway.advance_token_sequence(known + 1000000000);
    end if;
end
$$;
comment on function underway.recover_tokens is
    'makes the next token greater than those of the newest runs and attempts';
