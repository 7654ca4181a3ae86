//! The list of cases; it exists once, here.

use std::time::Duration;

use buqueue_core::Feature;

/// Hands the list to a macro: `promise name(Feature …) [alone];`, by group.
#[doc(hidden)]
#[macro_export]
macro_rules! __cases {
    ($($then:tt)*) => {
        $($then)*! {
            build {
                1 pair_works();
                1 unreachable_broker_is_connection_lost();
                1 silent_broker_fails_in_time();
                1 wrong_credentials_are_told_apart();
                1 a_clash_is_refused();
                1 invalid_fields_are_named();
                1 invalid_dlq_is_named(DeadLetters);
                1 building_twice_is_harmless();
                2 sent_after_build_is_received();
                2 sent_before_build_is_received();
                3 queues_are_isolated();
                3 producer_takes_nothing();
                3 idle_consumer_keeps_nothing();
                36 capabilities_agree_with_themselves();
            }
            send {
                5 id_is_printable();
                16 order_of_arrival(OrderPerKey);
                5 concurrent_sends_all_arrive();
                5 producer_dropped_then_received();
                12 dropped_send_leaves_the_producer_usable();
                6 empty_payload();
                6 nul_payload();
                6 every_byte_payload();
                6 non_utf8_payload();
                6 one_mebibyte_payload();
                6 largest_payload();
                6 too_large_payload_is_refused();
                7 routing_key_arrives();
                7 deduplication_id_arrives();
                7 unicode_keys_arrive();
                6 json_arrives();
            }
            headers {
                7 none();
                7 names_of_1_and_255_bytes();
                7 visible_ascii_names();
                7 names_are_case_sensitive();
                7 names_that_others_use();
                7 a_repeated_name_replaces();
                7 empty_value();
                7 multiline_value();
                7 unicode_value();
                7 value_of_64_kib();
                7 fifty_headers();
                33 trace_context_passes_through();
                7 reserved_prefix_is_refused();
                7 bad_names_are_refused();
            }
            batch {
                8 empty();
                8 one();
                8 hundred_in_order();
                8 thousands_in_order();
                8 ids_are_in_order();
                8 keeps_headers_and_keys();
                8 invalid_items_keep_their_place();
                8 all_invalid();
                8 too_large_item_fails_alone();
                8 splits_by_bytes();
                8 costs_few_round_trips(BatchSend);
            }
            receive {
                11 try_receive_on_empty_is_prompt();
                11 try_receive_finds_a_message();
                11 try_receive_finds_a_nacked_message(DeliveryCount);
                11 receive_wakes_on_send();
                11 receive_outlasts_idleness();
                11 receive_batch_of_zero_is_an_error();
                11 receive_batch_does_not_wait_for_more();
                11 receive_batch_keeps_to_its_bounds();
                11 receive_batch_of_everything();
                11 ways_to_receive_can_be_mixed();
                11 many_in_flight();
                17 consumers_share();
                13 malformed_record_blocks_nobody();
                13 foreign_message_is_read();
                13 binary_header_is_read();
                13 duplicate_header_is_read();
                13 malformed_record_can_die(DeadLetters DeliveryCount);
                11 consumer_may_leave_and_return();
            }
            ack {
                18 acked_is_gone();
                18 ack_all_acks_each();
                18 ack_all_of_nothing();
                18 concurrent_acks();
                18 acks_one_of_many();
                23 ack_after_the_consumer_is_dropped();
                23 nack_after_the_consumer_is_dropped(DeliveryCount);
                23 delivery_is_send_and_sync();
                18 late_ack_is_lease_expired(Lease DetectsLateSettle);
                18 late_nack_is_lease_expired(Lease DetectsLateSettle);
                24 late_extend_is_lease_expired(Lease DetectsLateSettle);
                23 late_drop_disturbs_nobody(Lease);
                24 extend_keeps_it_away(Lease);
                24 extend_reaches_beyond_the_lease(Lease);
                24 extend_ends(Lease);
                24 absurd_extension_is_harmless();
                24 extend_is_ok_everywhere();
            }
            nack {
                19 visible_at_once(DeliveryCount);
                19 keeps_the_message(DeliveryCount DelayedRetry);
                19 visible_to_others(DeliveryCount);
                20 count_grows(DeliveryCount);
                21 first_failure_is_remembered(DeliveryCount);
                20 every_cause_counts(DeliveryCount Lease DelayedRetry);
                20 counts_do_not_mix(DeliveryCount);
                19 delay_is_kept(DeliveryCount DelayedRetry);
                19 delay_may_exceed_the_lease(DeliveryCount Lease DelayedRetry);
                19 delay_outlives_its_consumer(DeliveryCount DelayedRetry);
                19 delayed_message_lets_others_pass(DeliveryCount DelayedRetry);
                19 delays_end_in_their_order(DeliveryCount DelayedRetry);
                19 absurd_delay_is_harmless(DeliveryCount DelayedRetry);
                20 expired_lease_redelivers(DeliveryCount Lease);
                20 expired_lease_goes_to_others(DeliveryCount Lease);
                20 many_expired_leases_redeliver(DeliveryCount Lease);
                22 dropped_comes_back_soon(DeliveryCount);
                22 dropped_batch_comes_back(DeliveryCount);
                22 dropped_outside_a_runtime(DeliveryCount);
                22 panicked_handler_redelivers(DeliveryCount);
                22 aborted_handler_redelivers(DeliveryCount);
                22 unpolled_ack_redelivers(DeliveryCount DelayedRetry);
            }
            dlq {
                26 moves_after_max_receive_count(DeadLetters DeliveryCount);
                26 stays_below_max_receive_count(DeadLetters DeliveryCount);
                26 max_receive_count_of_one(DeadLetters DeliveryCount);
                26 nack_after_on_the_last_attempt(DeadLetters DeliveryCount DelayedRetry);
                28 keeps_the_message_and_tells_its_story(DeadLetters DeliveryCount);
                28 letter_counts_its_own_failures(DeadLetters DeliveryCount);
                25 dead_letter_moves_at_once(DeadLetters DeliveryCount);
                25 any_reason_will_do(DeadLetters DeliveryCount);
                25 dead_letter_without_a_queue(DeliveryCount);
                26 poison_by_drop(DeadLetters DeliveryCount);
                26 poison_by_lease(DeadLetters DeliveryCount Lease);
                26 verdict_in_every_way_to_receive(DeadLetters DeliveryCount);
                26 neighbours_pass(DeadLetters DeliveryCount);
                26 many_die_at_once(DeadLetters DeliveryCount);
                28 redrive_sends_it_back(DeadLetters DeliveryCount);
                28 redriven_message_can_die_again(DeadLetters DeliveryCount);
                27 failing_publish_leaves_the_original(DeadLetters DeliveryCount);
                27 failing_dead_letter_comes_back(DeadLetters DeliveryCount);
                29 destination_is_created(DeadLetters DeliveryCount);
                26 dead_letters_can_die(DeadLetters DeliveryCount);
            }
            schedule {
                9 never_early_and_hardly_late(ScheduledDelivery);
                9 try_receive_finds_what_is_due(ScheduledDelivery);
                9 past_means_now(ScheduledDelivery);
                9 in_order_of_time(ScheduledDelivery);
                9 keeps_the_message(ScheduledDelivery);
                9 keeps_any_payload(ScheduledDelivery);
                9 can_fail_and_die(ScheduledDelivery DeadLetters DeliveryCount);
                9 survives_its_producer(ScheduledDelivery);
                9 survives_its_consumers(ScheduledDelivery);
                9 due_while_nobody_is_there(ScheduledDelivery);
                9 survives_a_broker_restart(ScheduledDelivery SurvivesBrokerRestart) alone;
                9 a_year_ahead_holds_up_nobody(ScheduledDelivery);
                9 beyond_the_horizon(ScheduledDelivery);
                9 the_end_of_time_is_harmless(ScheduledDelivery);
                9 two_hundred_at_random(ScheduledDelivery);
                9 many_at_the_same_moment(ScheduledDelivery);
                9 interleaved_with_immediate_ones(ScheduledDelivery);
                9 consumers_share_schedules(ScheduledDelivery);
                9 is_validated_like_a_send(ScheduledDelivery);
            }
            stream {
                32 take_some();
                32 take_leaves_the_rest();
                32 combinators_work();
                32 concurrent_handlers();
                32 ends_on_shutdown();
                32 shutdown_before_the_first_poll();
                32 unpolled_stream_does_not_hold_up_shutdown();
                32 dropped_before_its_deliveries(DeliveryCount);
                32 dropped_while_waiting_loses_nothing();
            }
            shutdown {
                30 wakes_idle_receivers();
                31 graceful_loop_ends();
                30 nothing_is_delivered_afterwards();
                30 waits_for_what_is_in_flight();
                23 nack_while_stopping(DeliveryCount);
                30 drain_timeout_bounds_the_wait();
                30 is_idempotent();
                30 after_the_consumer_is_gone();
                30 dropped_call_can_be_repeated();
                30 panicked_handler_does_not_hold_it_up();
                31 buffered_messages_go_back();
                31 given_back_is_not_counted(DeliveryCount);
                30 stops_one_of_many();
                31 under_load_loses_nothing();
                30 silent_broker_does_not_hold_it_up();
                30 producer_closes();
            }
            cancel {
                12 receive_at_every_await();
                12 receive_batch_at_every_await();
                12 try_receive_at_every_await();
                12 receive_graceful_at_every_await();
                12 receive_under_timeouts();
                12 receive_in_a_select();
                12 ack_midway();
                12 nack_midway(DeliveryCount);
                12 extend_midway();
                12 extended_unawares(Lease);
                27 dead_letter_midway(DeadLetters);
                12 build_midway();
            }
            reconnect {
                14 idle_consumer_after_a_cut();
                14 busy_consumer_after_a_cut();
                14 producer_after_a_cut();
                14 send_without_a_broker_is_told();
                14 broker_away_and_back();
                14 idle_consumer_half_open();
                14 busy_consumer_half_open();
                14 producer_half_open();
                14 stall_and_resume();
                14 slow_network();
                14 cuts_under_load();
                14 cut_during_a_batch();
                14 in_flight_across_a_cut();
                14 schedule_across_a_cut(ScheduledDelivery);
                14 idle_consumer_after_a_restart(SurvivesBrokerRestart) alone;
                14 restart_under_load(SurvivesBrokerRestart) alone;
                14 deleted_group_recovers();
                14 deleted_group_recovers_while_waiting();
                14 deleted_queue_recovers();
            }
            order {
                16 per_key(OrderPerKey);
                16 per_key_in_batches(OrderPerKey);
                16 acks_do_not_matter(OrderPerKey);
                16 one_key_does_not_hold_up_others(OrderPerKey);
            }
            groups {
                17 each_gets_everything(Groups);
                17 members_share(Groups);
                17 failures_stay_in_their_group(Groups DeliveryCount);
                17 one_behind_loses_nothing(Groups);
                17 each_gets_schedules(Groups ScheduledDelivery);
            }
            dedup {
                10 same_id_is_delivered_once(Deduplication);
                10 remembered_after_the_ack(Deduplication);
                10 different_ids_are_different(Deduplication);
                10 ids_belong_to_their_queue(Deduplication);
                10 within_a_batch(Deduplication);
                10 schedules_as_well(Deduplication ScheduledDelivery);
                10 concurrent_duplicates(Deduplication);
                10 redelivery_is_no_duplicate(Deduplication DelayedRetry DeliveryCount);
                10 window_ends(Deduplication);
            }
            bounds {
                15 slow_handler_does_not_grow(SharedBetweenProcesses);
                15 acknowledged_messages_are_dropped();
                15 one_unsettled_message_keeps_no_others();
                15 many_short_lived_consumers();
            }
            errors {
                36 name_backend_and_operation();
                36 kinds_are_the_same_everywhere();
                35 show_no_payload();
                36 are_handy();
            }
            process {
                20 killed_handler_redelivers(SharedBetweenProcesses DeliveryCount);
                26 poison_by_crash(SharedBetweenProcesses DeadLetters DeliveryCount);
                5 killed_producer_loses_nothing(SharedBetweenProcesses);
                12 killed_consumers_lose_nothing(SharedBetweenProcesses);
                26 fifty_kills_lose_nothing(SharedBetweenProcesses);
                12 killed_while_waiting(SharedBetweenProcesses);
                9 schedule_survives_a_killed_producer(SharedBetweenProcesses ScheduledDelivery);
                9 schedule_survives_a_killed_consumer(SharedBetweenProcesses ScheduledDelivery);
                19 delayed_retry_survives_a_killed_consumer(SharedBetweenProcesses DelayedRetry DeliveryCount);
                17 processes_share(SharedBetweenProcesses);
            }
            trace {
                33 one_trace_to_the_answer();
                33 through_a_nack(DeliveryCount);
                33 through_a_delayed_retry(DelayedRetry);
                33 through_a_schedule(ScheduledDelivery);
                33 through_a_dead_letter_and_a_redrive(DeadLetters);
                33 batches_link();
                33 streams_keep_traces_apart();
                33 attributes_are_the_conventions();
                33 what_is_carried_stays();
                33 baggage_comes_through();
                33 only_who_traces_adds_headers();
                35 nothing_private_is_said(DeadLetters);
            }
            stats {
                34 ready_in_flight_and_scheduled();
                34 told_by_the_monitor();
                34 dead_letters_are_counted(DeadLetters DeliveryCount);
                34 a_silent_connection_ends_in_time();
                34 an_unreachable_broker_is_an_error();
            }
            endurance {
                14 five_restarts(SurvivesBrokerRestart) alone;
                14 five_half_opens();
                9 thousand_schedules(ScheduledDelivery);
                9 schedules_to_a_deleted_queue(ScheduledDelivery);
            }
            dynamic {
                4 pair_works();
                4 halves_work();
                4 keeps_the_dead_letter_queue(DeadLetters DeliveryCount);
                4 keeps_the_drain_timeout();
                4 becomes_a_stream();
                4 shared_behind_an_arc();
                4 futures_are_send();
            }
        }
    };
}

macro_rules! data {
    ($($group:ident { $($promise:literal $name:ident($($feature:ident)*) $($alone:ident)?;)* })*) => {
        &[$($(Case {
            group: stringify!($group),
            name: stringify!($name),
            promise: $promise,
            requires: &[$(Feature::$feature),*],
            alone: !stringify!($($alone)?).is_empty(),
        },)*)*]
    };
}

/// Every case of the suite.
pub const CASES: &[Case] = __cases!(data);

/// One case of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Case {
    /// The module of the generated test.
    pub group: &'static str,
    /// The name of the generated test.
    pub name: &'static str,
    /// The number of the promise in the contract.
    pub promise: u8,
    /// A backend that does not have all of these is excluded.
    pub requires: &'static [Feature],
    /// Disturbs others (it restarts the broker), so it runs while no other case does.
    pub alone: bool,
}

impl Case {
    /// How long the case may take on a machine that does much else.
    pub(crate) fn time_limit(&self) -> Duration {
        let is_long = self.group == "endurance" || self.name == "fifty_kills_lose_nothing";
        Duration::from_secs(if is_long { 240 } else { 120 })
    }

    /// The case of that name.
    #[doc(hidden)]
    #[must_use]
    pub fn find(group: &str, name: &str) -> Self {
        let case = CASES.iter().find(|case| case.group == group && case.name == name);
        *case.unwrap_or_else(|| unreachable!("the tests are generated from the same list"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_case_is_listed() {
        let mut written = BTreeSet::new();
        for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cases")).unwrap() {
            let path = file.unwrap().path();
            let group = path.file_stem().unwrap().to_str().unwrap().to_owned();
            for line in std::fs::read_to_string(&path).unwrap().lines() {
                if let Some((name, _)) =
                    line.strip_prefix("pub async fn ").and_then(|line| line.split_once('<'))
                {
                    written.insert((group.clone(), name.to_owned()));
                }
            }
        }
        let listed: BTreeSet<(String, String)> =
            CASES.iter().map(|case| (case.group.to_owned(), case.name.to_owned())).collect();
        assert_eq!(listed.len(), CASES.len(), "a case is listed twice");
        assert_eq!(written, listed);
    }

    #[test]
    fn every_promise_has_a_case() {
        let kept: BTreeSet<u8> = CASES.iter().map(|case| case.promise).collect();
        let promised: BTreeSet<u8> = (1..=36).collect();
        assert_eq!(kept, promised);
    }
}
