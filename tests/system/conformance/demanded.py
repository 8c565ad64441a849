"""The thirty tests that ANCHORS.md demands (C3), by their numbers, and which of ours they are.

Where ours differs, `why` says how, and that it does so by design.
"""

from conformance.table import Line, held

DEMANDED: dict[str, Line] = {
    "1": held(
        "a worker killed at any instant, under load",
        "test_worker_deaths::test_an_app_that_does_not_boot_ends_the_supervisor",
        "test_worker_deaths::test_workers_that_stop_booting_later_burn_no_attempts",
        "test_worker_deaths::test_an_idle_worker_that_dies_is_replaced_and_nobody_is_charged",
        "test_worker_deaths::test_tasks_handed_ahead_of_a_death_are_not_charged",
        "test_worker_deaths::test_every_deed_is_charged_to_its_own_attempt",
        "test_worker_deaths::test_workers_killed_at_random_cost_only_what_they_ran",
        "test_transactions::test_a_worker_killed_between_its_commit_and_its_report_has_succeeded",
        "test_ledger::test_money_moves_once",
    ),
    "2": held(
        "a supervisor killed while its workers run C code",
        "test_supervisor_death::test_nothing_outlives_a_killed_supervisor_and_another_finishes_its_work",
        "test_chaos::test_chaos",
    ),
    "3": held(
        "a supervisor stopped for longer than its lease",
        "test_supervisor_death::test_a_supervisor_that_was_stopped_for_too_long_changes_nothing",
        "test_transactions::test_a_run_that_is_lost_or_cancelled_meanwhile_is_not_handed_over",
    ),
    "4": held("a stopped worker beyond its hard limit", "test_limits::test_what_does_not_heed_the_interrupt_is_killed"),
    "5": held(
        "the fence matrix",
        "test_fence::test_only_the_right_token_of_our_own_running_attempt_writes",
        "test_fence::test_in_one_batch_with_all_others_only_the_right_cell_writes",
        "test_fence::test_a_statement_without_a_token_writes_only_in_its_situations",
        "test_transactions::test_only_the_right_token_of_our_own_running_attempt_hands_over",
    ),
    "6": held(
        "the connection cut before and after every statement",
        "test_statement_cuts::test_a_statement_that_is_cut_off_does_not_change_the_results",
        "test_statement_cuts::test_a_release_that_is_cut_off_takes_effect_nevertheless",
        "test_statement_cuts::test_a_steps_transaction_that_is_cut_off_at_any_statement_commits_once",
        "test_group_commit::test_a_commit_cut_off_by_a_lost_connection_counts_once",
    ),
    "7": held(
        "Postgres stopped immediately, again and again; a crash between COMMIT and its answer",
        "test_database_away::test_postgres_is_stopped_immediately_and_started_again",
        "test_database_away::test_postgres_is_stopped_immediately_and_started_again_for_ten_minutes",
        "test_transactions::test_an_answer_to_commit_that_is_lost_changes_nothing",
    ),
    "8": held(
        "failover with synchronous_commit on and off",
        "test_failover::test_a_synchronous_standby_is_promoted_and_the_old_primary_comes_back",
        "test_failover::test_an_asynchronous_standby_that_was_behind_is_promoted",
        "test_claims::test_a_server_that_lost_the_last_tokens_does_not_reuse_them",
    ),
    "9": held(
        "workers that hold the GIL for three leases",
        "test_limits::test_a_step_that_holds_the_gil_for_three_leases_runs_once",
        "test_floods::test_no_lease_lapses_and_memory_is_bounded_while_all_workers_flood",
        why="usleep without releasing the GIL stands for all code in C; a supervisor is another process and sees none",
    ),
    "10": held(
        "64 workers flood logs, results and progress",
        "test_floods::test_no_lease_lapses_and_memory_is_bounded_while_all_workers_flood",
        "test_floods::test_64_workers_flood_for_a_while",
    ),
    "11": held(
        "whatever a step may do to its process: one verdict each",
        "test_worker_deaths::test_every_deed_is_charged_to_its_own_attempt",
        "test_worker_deaths::test_nothing_a_worker_started_outlives_it",
        "test_attempts::test_a_step_that_takes_the_signal_does_not_spare_the_next_its_interrupt",
        "test_output::test_a_worker_that_closed_its_output_works_on",
    ),
    "12": held(
        "memory, in a worker, below it, and by the kernel",
        "test_limits::test_what_exceeds_its_memory_limit_is_killed_with_all_below_it",
        "test_recycling::test_a_leak_stays_bounded",
        "test_quarantine::test_a_kill_by_the_kernel_for_memory_is_told_from_others",
    ),
    "13": held(
        "poison is quarantined with evidence while others flow",
        "test_worker_deaths::test_a_run_that_keeps_killing_is_quarantined_with_evidence",
        "test_quarantine::test_whoever_kills_all_around_it_is_found_and_no_innocent_put_aside",
        why="the 90% are measured by make bench, medians of five pairs in one run: nothing timed is a test",
    ),
    "14": held(
        "an app that raises, hangs or is slow to import",
        "test_booting::test_each_failure_of_a_slot_doubles_its_pause_up_to_half_a_minute",
        "test_booting::test_an_import_that_hangs_is_given_up",
        "test_booting::test_an_import_of_twenty_seconds_is_waited_for",
        "test_worker_deaths::test_workers_that_stop_booting_later_burn_no_attempts",
        "test_health::test_code_that_does_not_boot_is_reported",
        "test_reload::test_a_second_hup_begins_again_and_one_during_a_drain_is_ignored",
    ),
    "15": held(
        "the matrix of ways to stop",
        "test_shutdown_matrix::test_stop",
        "test_shutdown::test_quit_or_a_second_signal_stops_now",
        why="TERM and INT mean the same, so twice and to the group are tried with one of them each",
    ),
    "16": held(
        "reload under load",
        "test_reload::test_hup_rolls_to_the_new_code_under_load",
        "test_reload::test_code_that_does_not_boot_leaves_the_old_running_and_says_so",
    ),
    "17": held(
        "recycling after every task",
        "test_recycling::test_a_fresh_worker_for_each_task",
        why="300 tasks, each in a process of its own: what leaks has shown by then; 10,000 take half an hour",
    ),
    "18": held(
        "many claimers, keys, priorities",
        "test_claims::test_concurrent_claims_take_every_run_exactly_once",
        "test_key_races::test_limits_of_keys_are_never_exceeded_and_no_run_is_overtaken",
        "test_claims::test_one_unit_of_priority_is_worth_one_minute_of_waiting",
        "test_claims::test_runs_are_claimed_in_the_order_of_their_rank",
        why="16 claimers and 10,000 runs; keys beside it, by four processes that are killed meanwhile; an order is "
        "promised within a claim, not between two that skip each other's rows",
    ),
    "19": held(
        "no two statements wait for each other",
        "test_deadlocks::test_an_interleaving_finds_a_deadlock",
        "test_deadlocks::test_the_most_important_statements_do_not_deadlock",
        "test_deadlocks::test_no_two_statements_deadlock",
        "test_deadlocks::test_no_statement_of_a_supervisor_waits_for_another_sessions_lock",
        "test_deadlocks::test_concurrent_syncs_of_jobs_in_different_orders_do_not_deadlock",
    ),
    "20": held(
        "a clock that is an hour wrong, or is set",
        "test_wrong_clock::test_nobody_decides_by_the_clock_of_the_host",
        "test_wrong_clock::test_leases_delays_and_schedules_go_by_the_databases_clock",
    ),
    "21": held(
        "LISTEN: terminated, half open, lost; no busy loop",
        "test_listener::test_a_connection_that_breaks_while_idle_wakes_its_loop_and_listens_again",
        "test_connections::test_a_connection_that_is_half_open_is_given_up_and_the_work_found",
        "test_lost_notifications::test_work_whose_notification_is_lost_is_found_by_the_poll",
        "conformance/test_scenarios::test_whatever_fails_at_once_makes_no_busy_loop",
        why="behind a connection that is silently dead the work is found within 12 s and a poll",
    ),
    "22": held(
        "behind pgbouncer in transaction mode",
        "test_transactions::test_behind_pgbouncer_in_transaction_mode_it_is_the_same",
        "test_database_away::test_the_connections_of_pgbouncer_are_killed",
    ),
    "23": held(
        "enqueue is part of the caller's transaction",
        "test_callers_transaction::test_runs_exist_only_after_the_callers_commit",
        "test_callers_transaction::test_supervisors_are_notified_at_the_commit",
        "test_client::test_enqueue_many_is_all_or_nothing",
        "test_unique_keys::test_sixteen_racing_sessions_create_one_run_per_key",
    ),
    "24": held(
        "a step's writes that Postgres refuses",
        "test_transactions::test_writes_take_effect_with_the_hand_over_and_failures_leave_nothing",
        why="a serialization failure or a deadlock is a failed attempt: what the step has read is no longer so",
    ),
    "25": held(
        "cron lines against a scan of every minute; one run for each slot",
        "test_cron::test_slots_are_those_of_a_scan_of_every_minute",
        "test_cron::test_which_slots_are_made_up_for",
        "test_schedules::test_of_many_at_the_same_moment_one_fires",
        "test_schedules::test_every_slot_gives_one_run_however_often_supervisors_die",
    ),
    "26": held(
        "runs against a model",
        "test_run_model::test_runs_follow_the_model",
        why="a job is a chain: there is no graph to fan in",
    ),
    "27": held(
        "old code works on while the schema is expanded",
        "test_migrate::test_a_migration_that_waits_for_a_lock_lets_others_through",
        "test_migrate::test_a_newer_schema_that_allows_this_code_is_used",
        why="nothing has been released: there is no older code yet that could work beside newer code",
    ),
    "28": held(
        "a soak; plans that never read through the table",
        "test_chaos::test_soak",
        "test_long_soak::test_nothing_grows_in_an_hour",
        "test_plans::test_no_statement_reads_through_the_runs",
        "test_plans::test_a_claim_touches_few_pages_beside_a_hundred_times_the_backlog",
    ),
    "29": held(
        "connections at scale",
        "conformance/test_scenarios::test_connections_do_not_grow_with_the_workers",
        "test_connections::test_64_workers_take_two_connections",
        "test_connections::test_20_supervisors_start_together_at_a_server_for_100_connections",
    ),
    "30": held(
        "a simulation of the machine",
        "test_simulation::test_promises_hold_in_every_order",
        "test_simulation::test_promises_hold_in_many_orders",
        "test_simulation::test_a_broken_promise_is_seen",
    ),
}
