"""What the supervisor must do, and which tests show it.

To add to a line, add the test's name. What no test shows yet, all of a requirement or a part, stands in MISSING too.
"""

from conformance.table import Line, held

REQUIREMENTS: dict[str, Line] = {
    "R1": held(
        "the parent never runs user code and stays responsive",
        "test_layers::test_a_supervisor_never_touches_user_code",
        "test_layers::test_nobody_unpickles_or_evaluates",
        "test_wire::test_the_payload_is_never_parsed",
        "test_limits::test_what_does_not_heed_the_interrupt_is_killed",
    ),
    "R2": held(
        "children are exec'd, one task at a time, without a database connection",
        "test_layers::test_a_worker_has_no_database_driver",
        "test_worker_processes::test_a_worker_has_nothing_open_but_what_it_was_given",
        "test_supervisor_death::test_nothing_outlives_a_killed_supervisor_and_another_finishes_its_work",
    ),
    "R3": held(
        "a child's death costs the attempt it had started",
        "test_worker_deaths::test_every_deed_is_charged_to_its_own_attempt",
        "test_worker_deaths::test_workers_killed_at_random_cost_only_what_they_ran",
    ),
    "R4": held(
        "what was handed ahead goes back unharmed",
        "test_worker_deaths::test_tasks_handed_ahead_of_a_death_are_not_charged",
        "test_dispatch::test_what_was_not_begun_is_taken_back",
    ),
    "R5": held(
        "death is seen at once, a complete result before it counts",
        "test_worker_processes::test_a_death_is_seen_at_once",
        "test_worker_deaths::test_an_idle_worker_that_dies_is_replaced_and_nobody_is_charged",
        "test_wire::test_messages_survive_any_cut",
        "test_transactions::test_a_worker_killed_between_its_commit_and_its_report_has_succeeded",
    ),
    "R6": held("hard timeout from outside", "test_limits::test_what_does_not_heed_the_interrupt_is_killed"),
    "R7": held(
        "soft timeout: an interrupt, and time to clean up",
        "test_limits::test_a_timeout_interrupts_the_step_which_may_clean_up",
        "test_limits::test_an_interrupt_never_hits_the_next_task",
        "test_limits::test_a_step_that_takes_the_signal_away_does_not_take_it_from_others",
    ),
    "R8": held(
        "memory limit over all that hangs below; a mark recycles, a kill by the kernel is recognised",
        "test_limits::test_what_exceeds_its_memory_limit_is_killed_with_all_below_it",
        "test_recycling::test_a_leak_stays_bounded",
        "test_quarantine::test_a_kill_by_the_kernel_for_memory_is_told_from_others",
    ),
    "R9": held(
        "grandchildren die with the task, no zombies, also as process 1",
        "test_shutdown_matrix::test_as_process_1_of_a_container",
        "test_worker_deaths::test_nothing_a_worker_started_outlives_it",
    ),
    "R10": held(
        "a killed supervisor leaves nothing behind",
        "test_supervisor_death::test_nothing_outlives_a_killed_supervisor_and_another_finishes_its_work",
        "test_supervisor_death::test_the_keeper_is_kept",
    ),
    "R11": held(
        "one statement renews all, on its own connection, by the database's clock",
        "conformance/test_scenarios::test_commits_that_have_to_wait_hold_up_no_renewal",
        "test_plans::test_renewals_touch_no_index",
        "test_claims::test_a_row_that_is_no_longer_ours_is_lost",
    ),
    "R12": held(
        "self-fencing by the monotonic clock",
        "test_supervisor_death::test_a_supervisor_that_was_stopped_for_too_long_changes_nothing",
        "test_networks::test_a_step_is_killed_by_the_supervisors_own_clock_and_another_takes_over",
    ),
    "R13": held(
        "a lost lease kills at once and drops the result",
        "test_supervisor_death::test_a_supervisor_that_was_stopped_for_too_long_changes_nothing",
        "test_group_commit::test_a_lost_run_is_dropped_and_nothing_of_it_is_written",
    ),
    "R14": held(
        "every write of an attempt is fenced",
        "test_fence::test_every_statement_that_writes_an_attempt_is_in_a_matrix_or_only_adds",
        "test_fence::test_only_the_right_token_of_our_own_running_attempt_writes",
        "test_fence::test_in_one_batch_with_all_others_only_the_right_cell_writes",
    ),
    "R15": held(
        "claims charge nothing; reaper and claimers never both act",
        "test_claims::test_a_claim_whose_answer_was_lost_is_given_back_without_charge",
        "test_claims::test_many_claimers_share_all_runs_and_none_is_claimed_twice",
        "test_run_model::test_runs_do_what_the_model_says",
    ),
    "R16": held(
        "durable before forgotten; while the database is away results wait and claims stop",
        "test_shutdown::test_work_goes_on_by_itself_when_the_database_has_restarted",
        "test_statement_cuts::test_a_statement_cut_off_changes_nothing_in_the_end",
        "test_group_commit::test_a_locked_run_is_committed_once_it_is_unlocked_and_the_others_at_once",
        "test_floods::test_results_that_cannot_leave_stop_the_workers",
        "test_dispatch::test_while_results_cannot_leave_nothing_is_handed_out_and_nothing_waits_behind",
    ),
    "R17": held(
        "a commit whose answer was lost is looked up, not repeated blindly",
        "test_group_commit::test_a_commit_cut_off_by_a_lost_connection_counts_once",
        "test_group_commit::test_a_commit_that_took_effect_counts_even_if_its_run_went_on_meanwhile",
        "test_transactions::test_an_answer_to_commit_that_is_lost_changes_nothing",
        "test_statement_cuts::test_a_steps_own_transaction_cut_off_at_any_statement_commits_once",
    ),
    "R18": held(
        "crashes are counted apart; quarantine with evidence",
        "test_worker_deaths::test_a_run_that_keeps_killing_is_quarantined_with_evidence",
        "test_quarantine::test_the_evidence_is_kept_shown_and_the_runs_released",
        "test_quarantine::test_whoever_kills_all_around_it_is_found_and_no_innocent_put_aside",
        "test_verdict::test_the_last_crash_quarantines_the_run_with_evidence",
        why="what is left of others' throughput is measured by make bench: medians of five pairs in one run",
    ),
    "R19": held(
        "respawn back-off; what does not boot burns no attempts, and can be asked for",
        "test_booting::test_each_failure_of_a_slot_doubles_its_pause_up_to_half_a_minute",
        "test_booting::test_an_import_that_hangs_is_given_up",
        "test_health::test_code_that_does_not_boot_is_told",
        "test_worker_deaths::test_an_app_that_does_not_boot_ends_the_supervisor",
        "test_worker_deaths::test_workers_that_stop_booting_later_burn_no_attempts",
    ),
    "R20": held(
        "recycling after a number of tasks, an age, a memory mark",
        "test_recycling::test_no_worker_runs_more_tasks_than_its_mark",
        "test_recycling::test_age_replaces_idle_workers_and_waits_for_the_task_of_a_busy_one",
        "test_recycling::test_a_leak_stays_bounded",
        "test_recycling::test_each_worker_is_due_somewhere_in_the_last_fifth",
        "test_recycling::test_workers_whose_replacements_do_not_boot_go_on",
    ),
    "R21": held(
        "a stop by phases, in bounded time, with exit codes",
        "test_shutdown_matrix::test_stop",
        "test_shutdown::test_the_first_signal_drains",
        "test_shutdown::test_quit_or_a_second_signal_stops_now",
        "test_shutdown::test_when_the_grace_is_over_steps_are_interrupted_then_killed",
        "test_shutdown::test_exit_codes_name_what_is_wrong",
        "test_shutdown::test_term_while_the_database_is_down",
    ),
    "R22": held(
        "reload by generations",
        "test_reload::test_hup_rolls_to_the_new_code_under_load",
        "test_reload::test_two_generations_serve_only_what_each_knows",
        "test_reload::test_code_that_does_not_boot_leaves_the_old_running_and_says_so",
        "test_reload::test_a_second_hup_begins_again_and_one_during_a_drain_is_ignored",
    ),
    "R23": held(
        "connections constant; works behind pgbouncer",
        "conformance/test_scenarios::test_connections_do_not_grow_with_the_workers",
        "test_transactions::test_behind_pgbouncer_in_transaction_mode_it_is_the_same",
    ),
    "R24": held(
        "LISTEN is a hint",
        "test_lost_notifications::test_work_whose_notification_is_lost_is_found_by_the_poll",
        "test_waking::test_who_serves_the_queue_is_woken_and_nobody_else",
        "test_wakeup::test_a_connection_that_breaks_while_it_is_idle_is_noticed_at_once_and_listened_to_again",
        "test_connections::test_a_connection_that_is_half_open_is_given_up_and_the_work_found",
        "test_cancel::test_a_step_that_does_not_end_is_killed_after_a_grace_and_only_then_closed",
        "test_sql_enqueue::test_a_notification_only_when_a_supervisor_is_idle",
    ),
    "R25": held(
        "identity is a random id; host and pid are labels",
        "test_claims::test_the_lost_attempt_names_the_host_of_its_supervisor",
        "conformance/test_scenarios::test_each_start_has_an_identity_of_its_own",
    ),
    "R26": held(
        "backpressure everywhere",
        "test_output::test_a_flood_of_output_stops_nobody",
        "test_limits::test_what_does_not_heed_the_interrupt_is_killed",
        "test_worker_deaths::test_every_deed_is_charged_to_its_own_attempt",
        "test_dispatch::test_no_more_is_claimed_ahead_than_fits_by_the_size_of_what_came",
        "test_floods::test_renewals_are_on_time_and_memory_bounded_while_all_workers_flood",
        "test_floods::test_64_workers_flood_for_a_while",
        "test_floods::test_results_and_inputs_at_the_limit_pass_and_a_byte_more_fails_alone",
        "test_floods::test_what_is_far_too_long_is_cut_where_it_is_said",
        "test_floods::test_many_children_are_written_and_too_many_fail_that_attempt_alone",
        "test_floods::test_what_waits_behind_a_worker_that_does_not_read_goes_elsewhere",
        "test_floods::test_workers_that_stop_reading_are_killed_at_their_timeout",
    ),
    "R27": held(
        "what is going on can be seen",
        "test_title::test_ps_tells_what_each_worker_does",
        "test_health::test_a_supervisor_at_work_is_well_and_one_that_was_killed_is_not_there",
        "test_health::test_one_that_is_silent_or_in_trouble_is_named",
        "test_summary::test_a_line_tells_what_is_new",
        "test_command_line_looks::test_supervisors",
        "test_command_line_looks::test_show_a_failed_run",
        "test_output::test_output_and_log_lines_carry_what_they_are_about",
        why="health is a command with an exit code, not a port; counters are lines of the log",
    ),
    "R28": held(
        "a stored attempt can be replayed by hand",
        "test_replay::test_a_pending_run_runs_and_stays_as_it_is",
        "test_replay::test_a_failed_run_fails_again_where_it_stands",
        "test_replay::test_the_debugger_opens_where_the_step_raised",
    ),
}

# Requirement -> what no test shows yet. A line that names no test at all has to stand here.
MISSING: dict[str, str] = {}
