-- At most a thousand years, as in Python (underway/options.py). Comparisons of intervals count 360 days for a year, and
-- add up the parts. An interval whose parts cancel out, such as '292000 years -105110000 days', overflows when it is
-- added to an instant, so each part is limited too. (A run with keep => '293000 years' could neither finish nor be
-- cancelled: Postgres has no such instant, so the run was repeated for ever.)
create or replace function underway.checked_duration(option text, given interval) returns interval
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if given not between '0' and '365000 days'
        or abs(extract(year from given)) > 2000
        or abs(extract(day from given)) > 2000 * 365
        or abs(extract(hour from given)) > 2000 * 365 * 24
    then
        raise exception '% must lie between 0 and 365000 days, not %', option, given using errcode = 'UW002';
    end if;
    return given;
end
$$;
comment on function underway.checked_duration is 'the same duration; an error if a run cannot have it';
