//! What the shop knows of its orders, and whether the metrics say the same.

use std::collections::BTreeSet;
use std::fmt;

use crate::exposition::{Sample, sum};
use crate::shop::Shop;

/// The shop's own counts. The metrics are held against them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Books {
    /// Orders that the broker has taken.
    pub(crate) placed: u64,
    /// Of these, those for later.
    pub(crate) scheduled: u64,
    /// Orders that could not be sent, and never will.
    pub(crate) refused: u64,
    /// Attempts that went well.
    pub(crate) processed: u64,
    pub(crate) retried: u64,
    pub(crate) forgotten: u64,
    pub(crate) dead: u64,
    /// Orders that were settled more than once, as brokers may have it.
    pub(crate) repeated: u64,
    pub(crate) invoices: u64,
    /// Calls that failed although there was nothing wrong with them.
    pub(crate) troubles: u64,
    /// Orders that are neither processed nor dead.
    pub(crate) open: BTreeSet<u64>,
    /// Orders whose invoice has not been printed.
    pub(crate) unbilled: BTreeSet<u64>,
}

impl Books {
    pub(crate) fn is_settled(&self) -> bool {
        self.open.is_empty() && self.unbilled.is_empty()
    }

    pub(crate) fn settle(&mut self, order: u64) {
        if !self.open.remove(&order) {
            self.repeated += 1;
        }
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { placed, processed, retried, forgotten, dead, .. } = self;
        write!(
            f,
            "{placed} orders placed, {processed} processed, {retried} tried again, {forgotten} forgotten, {dead} dead"
        )
    }
}

/// Something that must be so.
pub(crate) struct Claim {
    pub(crate) text: String,
    pub(crate) holds: bool,
}

fn equal(what: &str, counts: &[(&str, u64)]) -> Claim {
    let all: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    Claim {
        text: format!("{what}: {}", all.join(" = ")),
        holds: counts.windows(2).all(|pair| pair[0].1 == pair[1].1),
    }
}

/// The metrics against the books.
pub(crate) fn claims(shop: &Shop, samples: &[Sample]) -> Vec<Claim> {
    let books = shop.books();
    if books.troubles > 0 {
        // A send that failed may have been one that did not, and a message comes twice then.
        let text =
            format!("{} calls failed for a while: counts may differ, and are not compared", books.troubles);
        return vec![Claim { text, holds: true }];
    }
    let of = |queue: &str, name: &str, fit: &dyn Fn(&Sample) -> bool| {
        let is_there = |sample: &Sample| {
            sample.label("messaging_destination_name").is_some_and(|name| shop.is(name, queue))
        };
        sum(samples, name, |sample| is_there(sample) && fit(sample))
    };
    let any = |_: &Sample| true;
    let good = |sample: &Sample| sample.label("error_type").is_none();
    let failed_by = |error: &'static str| move |sample: &Sample| sample.label("error_type") == Some(error);

    let sent = of("orders", "messaging_client_sent_messages_total", &good);
    let refused = of("orders", "messaging_client_sent_messages_total", &failed_by("invalid_message"));
    let consumed = of("orders", "messaging_client_consumed_messages_total", &any);
    let attempts = "messaging_process_duration_seconds_count";
    let processed = of("orders", attempts, &good);
    let dead = of("orders", "buqueue_deliveries_dead_lettered_total", &any);
    let abandoned = of("orders", "buqueue_deliveries_abandoned_total", &any);
    let redelivered = of("orders", "buqueue_deliveries_redelivered_total", &any);
    let in_flight = |queue| of(queue, "buqueue_deliveries_in_flight", &any);
    let billed = of("invoices", attempts, &good);

    let mut claims = vec![
        equal("sent", &[("metric", sent), ("shop", books.placed)]),
        equal("refused", &[("metric", refused), ("shop", books.refused)]),
        equal("processed", &[("metric", processed), ("shop", books.processed)]),
        equal(
            "tried again",
            &[("metric", of("orders", attempts, &failed_by("nack"))), ("shop", books.retried)],
        ),
        equal(
            "abandoned",
            &[
                ("metric", abandoned),
                ("shop", books.forgotten),
                ("process", of("orders", attempts, &failed_by("abandoned"))),
            ],
        ),
        equal(
            "dead letters",
            &[
                ("metric", dead),
                ("shop", books.dead),
                ("in their queue", of("orders", "buqueue_queue_dead_letters", &any)),
            ],
        ),
        equal(
            "every attempt was settled or abandoned",
            &[("consumed", consumed), ("attempts", of("orders", attempts, &any))],
        ),
        equal(
            "scheduled",
            &[
                ("metric", of("orders", "buqueue_schedule_lateness_seconds_count", &any)),
                ("shop", books.scheduled),
            ],
        ),
        equal(
            "invoices",
            &[
                ("sent", of("invoices", "messaging_client_sent_messages_total", &good)),
                ("consumed", of("invoices", "messaging_client_consumed_messages_total", &any)),
                ("processed", billed),
                ("shop", books.invoices),
            ],
        ),
        equal(
            "nothing is left",
            &[
                ("in flight", in_flight("orders") + in_flight("invoices")),
                (
                    "in the queues",
                    of("orders", "buqueue_queue_messages", &any)
                        + of("invoices", "buqueue_queue_messages", &any),
                ),
                ("expected", 0),
            ],
        ),
    ];
    if books.repeated == 0 {
        claims.push(equal(
            "sent = processed + dead letters",
            &[("sent", sent), ("processed + dead letters", processed + dead)],
        ));
        claims.push(equal(
            "consumed = sent + redelivered",
            &[("consumed", consumed), ("sent + redelivered", sent + redelivered)],
        ));
        claims.push(equal(
            "each order that was processed has one invoice",
            &[("processed", processed), ("invoices", billed)],
        ));
    }
    claims
}
