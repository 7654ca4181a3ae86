//! Building: promises 1 to 3.

use std::time::Duration;

use buqueue_core::{DlqConfig, ErrorKind, Feature, Support};
use tokio::net::TcpSocket;
use tokio::time::Instant;

use crate::support::{SOON, ack, nothing_for, numbered, receive, send, send_all, sorted, take, text, within};
use crate::{Ctx, Excluded, Harness, Outcome};

/// The default connection timeout of 10 s, and room for a loaded machine.
const CONNECT: Duration = Duration::from_secs(25);

/// A pair sends and receives.
pub async fn pair_works<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    send(&producer, "hello").await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(text(&delivery), "hello");
    assert_eq!((delivery.delivery_count(), delivery.first_failed_at()), (1, None));
    ack(delivery).await;
    Ok(())
}

/// Nobody listens at the address.
pub async fn unreachable_broker_is_connection_lost<H: Harness>(cx: &Ctx<H>) -> Outcome {
    cx.harness().broker_addr()?;
    // Taken for as long as this lasts, so that nobody comes to listen there.
    let taken = TcpSocket::new_v4().unwrap();
    taken.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let setup = cx.setup().via(taken.local_addr().unwrap());
    let producer = within(CONNECT, "build_producer", cx.builder(&setup).build_producer()).await;
    assert_eq!(producer.unwrap_err().kind, ErrorKind::ConnectionLost);
    let consumer = within(CONNECT, "build_consumer", cx.builder(&setup).build_consumer()).await;
    assert_eq!(consumer.unwrap_err().kind, ErrorKind::ConnectionLost);
    Ok(())
}

/// The connection opens, and then nothing is said.
pub async fn silent_broker_fails_in_time<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let proxy = cx.proxy().await?;
    proxy.stall();
    let setup = cx.setup().via(proxy.addr());
    let built = within(CONNECT, "build_pair", cx.builder(&setup).build_pair()).await;
    let kind = built.unwrap_err().kind;
    assert!(matches!(kind, ErrorKind::ConnectionLost | ErrorKind::Timeout), "{kind:?}");
    Ok(())
}

/// Wrong credentials have a kind of their own, and the secret is nowhere to be read.
pub async fn wrong_credentials_are_told_apart<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (builder, secret) = cx.harness().wrong_credentials(&setup)?;
    assert!(!format!("{builder:?}").contains(&secret), "the builder's Debug shows the secret");
    let error = within(CONNECT, "build_pair", builder.build_pair()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AuthenticationFailed, "{error:?}");
    assert!(!format!("{error} {error:?}").contains(&secret), "the error shows the secret");
    assert!(!error.is_transient());
    Ok(())
}

/// Topology that exists and differs is refused, not bent.
pub async fn a_clash_is_refused<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let clashing = cx.harness().clashing(&setup)?;
    let (producer, mut consumer) = cx.pair_on(&setup).await;
    let error = within(CONNECT, "build_pair", clashing.build_pair()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidConfig, "{error:?}");
    send(&producer, "unharmed").await;
    assert_eq!(take(&mut consumer, 1).await, ["unharmed"]);
    Ok(())
}

/// An invalid configuration fails with the name of the field.
pub async fn invalid_fields_are_named<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let invalid = cx.harness().invalid(&cx.setup());
    if invalid.is_empty() {
        return Err(Excluded::new("the harness knows no invalid field"));
    }
    for (builder, field) in invalid {
        let error = within(CONNECT, "build_pair", builder.build_pair()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig, "{field}: {error:?}");
        assert!(error.to_string().contains(field), "{error} does not name {field}");
    }
    Ok(())
}

/// The dead letter queue's configuration is checked with the rest.
pub async fn invalid_dlq_is_named<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let own = destination(cx, &setup);
    for (destination, max_receive_count, field) in [
        (setup.dlq().queue, 0, "max_receive_count"),
        (String::new(), 3, "destination"),
        (own, 3, "destination"),
    ] {
        let dlq = DlqConfig { destination, max_receive_count };
        let builder = cx.builder(&setup).dead_letter_queue(dlq);
        let error = within(CONNECT, "build_consumer", builder.build_consumer()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(field), "{error} does not name {field}");
    }
    Ok(())
}

fn destination<H: Harness>(cx: &Ctx<H>, setup: &crate::Setup) -> String {
    use buqueue_core::driver::Backend;
    H::Backend::destination(&cx.config(setup))
}

/// Declaring what exists already changes nothing.
pub async fn building_twice_is_harmless<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let (producer, first) = cx.pair_on(&setup).await;
    send(&producer, "kept").await;
    drop(first);
    let (_, mut second) = cx.pair_on(&setup).await;
    assert_eq!(take(&mut second, 1).await, ["kept"]);
    Ok(())
}

/// The start position is fixed when `build_consumer` returns.
pub async fn sent_after_build_is_received<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let producer = cx.producer(&setup).await;
    let mut consumer = cx.consumer(&setup).await;
    send(&producer, "at once").await;
    assert_eq!(take(&mut consumer, 1).await, ["at once"]);
    Ok(())
}

/// A queue keeps what is sent while nobody consumes.
pub async fn sent_before_build_is_received<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let producer = cx.producer(&setup).await;
    send_all(&producer, numbered("early", 5)).await;
    let mut consumer = cx.consumer(&setup).await;
    assert_eq!(sorted(take(&mut consumer, 5).await), numbered("early", 5));
    Ok(())
}

/// Two pairs in one process know nothing of each other.
pub async fn queues_are_isolated<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (one, mut from_one) = cx.pair().await;
    let (two, mut from_two) = cx.pair().await;
    send(&one, "one").await;
    send(&two, "two").await;
    assert_eq!(take(&mut from_one, 1).await, ["one"]);
    assert_eq!(take(&mut from_two, 1).await, ["two"]);
    nothing_for(Duration::from_millis(200), &mut from_one).await;
    nothing_for(Duration::from_millis(200), &mut from_two).await;
    Ok(())
}

/// Producers start nothing that consumes.
pub async fn producer_takes_nothing<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut producers = Vec::new();
    for _ in 0..3 {
        producers.push(cx.producer(&setup).await);
    }
    send_all(&producers[0], numbered("m", 20)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut consumer = cx.consumer(&setup).await;
    let start = Instant::now();
    assert_eq!(sorted(take(&mut consumer, 20).await), sorted(numbered("m", 20)));
    assert!(start.elapsed() < SOON, "nothing had to wait for a lease");
    Ok(())
}

/// A consumer that never asked keeps nothing back.
pub async fn idle_consumer_keeps_nothing<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let idle = cx.consumer(&setup).await;
    let producer = cx.producer(&setup).await;
    send_all(&producer, numbered("m", 5)).await;
    drop(idle);
    let mut consumer = cx.consumer(&setup).await;
    assert_eq!(sorted(take(&mut consumer, 5).await), numbered("m", 5));
    Ok(())
}

/// `require` and `support` say the same, and every exception has a reason.
pub async fn capabilities_agree_with_themselves<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, consumer) = cx.pair().await;
    assert_eq!(producer.capabilities(), consumer.capabilities());
    let capabilities = producer.capabilities();
    for feature in Feature::ALL {
        let support = capabilities.support(feature);
        assert_eq!(capabilities.require(feature).is_ok(), support.is_supported(), "{feature:?}");
        if let Support::Emulated(text) | Support::Unsupported(text) = support {
            assert!(!text.is_empty(), "{feature:?} has no reason");
        }
        if let Err(error) = capabilities.require(feature) {
            assert_eq!(error.kind, ErrorKind::Unsupported);
        }
    }
    Ok(())
}
