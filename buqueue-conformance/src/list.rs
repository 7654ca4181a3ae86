//! The list of cases; it exists once, here.

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
                5 order_of_arrival();
                5 concurrent_sends_all_arrive();
                5 producer_dropped_then_received();
                5 dropped_send_leaves_the_producer_usable();
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
    /// The case of that name.
    #[doc(hidden)]
    #[must_use]
    pub fn find(group: &str, name: &str) -> Self {
        let case = CASES.iter().find(|case| case.group == group && case.name == name);
        *case.unwrap_or_else(|| unreachable!("the tests are generated from the same list"))
    }
}
