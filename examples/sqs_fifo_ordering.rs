//! A bank on an SQS FIFO queue: transfers of one account in order, those of others beside them, and none booked twice.
//!
//! `cargo run --features sqs --example sqs_fifo_ordering`. `SQS_ENDPOINT` says where an emulator is, `http://127.0.0.1:4566`
//! where it is not set; give it the credentials of the environment, any will do:
//! `AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test`. On AWS a queue is its URL, and `endpoint_url` stays `None`.

#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::collections::BTreeMap;

use buqueue::prelude::*;
use buqueue::sqs::{SqsBackend, SqsConfig};
use buqueue_examples::{address, fresh};
use serde::{Deserialize, Serialize};

const ACCOUNTS: [&str; 3] = ["alice", "bob", "carol"];
const TRANSFERS: u32 = 6;

#[derive(Debug, Serialize, Deserialize)]
struct Transfer {
    account: String,
    number: u32,
}

#[tokio::main]
async fn main() -> Result<(), BuqueueError> {
    let endpoint = address("SQS_ENDPOINT", "http://127.0.0.1:4566");
    let config = SqsConfig {
        // The suffix makes it a FIFO queue.
        queue_url: format!("{endpoint}/000000000000/{}.fifo", fresh("transfers")),
        region: "us-east-1".to_owned(),
        endpoint_url: Some(endpoint),
        ..Default::default()
    };
    let (producer, mut consumer) = SqsBackend::builder(config).build_pair().await?;

    for number in 0..TRANSFERS {
        for account in ACCOUNTS {
            let transfer = Transfer { account: account.to_owned(), number };
            // The routing key is the message group: its messages are in order. The deduplication id: within five minutes
            // a second one of that id is taken and not delivered, so a send whose answer was lost can be repeated.
            let message = Message::from_json_with_key(&transfer, account)?
                .with_deduplication_id(format!("{account}-{number}"));
            producer.send(message.clone()).await?;
            if number == 0 {
                producer.send(message).await?;
            }
        }
    }
    println!("sent {TRANSFERS} transfers of {} accounts, the first of each twice", ACCOUNTS.len());

    let mut booked: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut has_failed = false;
    while booked.values().map(Vec::len).sum::<usize>() < ACCOUNTS.len() * TRANSFERS as usize {
        let delivery = consumer.receive().await?;
        let Transfer { account, number } = delivery.payload_json()?;
        // Bob's third transfer cannot be booked at first. Those behind it wait for it, alice and carol do not.
        if account == "bob" && number == 2 && !has_failed {
            has_failed = true;
            println!("transfer 2 of bob failed; he waits, the others do not");
            delivery.nack().await?;
            continue;
        }
        booked.entry(account).or_default().push(number);
        delivery.ack().await?;
    }
    for (account, numbers) in &booked {
        println!("{account}: {numbers:?}");
        assert!(numbers.iter().copied().eq(0..TRANSFERS), "{account}'s are in order, each once");
    }
    assert!(consumer.try_receive().await?.is_none(), "nothing is left");
    println!("✓ 18 transfers booked, each once and in order, though 3 were sent twice and 1 failed");
    Ok(())
}
